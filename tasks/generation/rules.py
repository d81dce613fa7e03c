"""What steers a checkpoint's generation, as transformers reads it of generation_config.json or of config.json."""

from typing import Any

from registry.errors import BadInput
from registry.records import Generation

_AGAIN = "correct generation_config.json in the checkpoint"


def read_rules(module: Any) -> Generation:
    """Return the tokens that steer a transformers model's greedy generation; its parts are not known yet.

    Beams, sampling, and penalties of lengths and repetitions are left out: generation is greedy.

    Raises:
        BadInput: it has no token to start with, or a token is not in its vocabulary.
    """
    said, vocabulary = module.generation_config, int(module.get_output_embeddings().weight.shape[0])
    start = said.decoder_start_token_id if said.decoder_start_token_id is not None else said.bos_token_id
    if start is None:
        raise BadInput(f"the checkpoint does not say which token its decoder starts with: {_AGAIN}")
    rules = Generation(
        (),
        prompt=_list_tokens(start) + (_list_prompt(said) or _list_tokens(said.forced_bos_token_id)),
        ends=_list_tokens(said.eos_token_id),
        padding=next(iter(_list_tokens(said.pad_token_id) or _list_tokens(said.eos_token_id) or (0,))),
        suppressed=_list_tokens(said.suppress_tokens)
        + tuple(token for word in said.bad_words_ids or () if len(word) == 1 for token in word),
        suppressed_first=_list_tokens(said.begin_suppress_tokens),
    )
    tokens = (*rules.prompt, *rules.ends, rules.padding, *rules.suppressed, *rules.suppressed_first)
    if strange := [token for token in tokens if not (type(token) is int and 0 <= token < vocabulary)]:
        raise BadInput(f"the checkpoint's generation names the token {strange[0]!r:.40}, which it has not: {_AGAIN}")
    return rules


def _list_prompt(said: Any) -> tuple[Any, ...]:
    """Return what Whisper reads behind its first token: language, task, and that there are no timestamps.

    Raises:
        BadInput: it knows several languages, and does not say which.
    """
    if forced := getattr(said, "forced_decoder_ids", None):
        return tuple(token for _, token in sorted(forced) if token is not None)
    without_times = _list_tokens(getattr(said, "no_timestamps_token_id", None))
    if not getattr(said, "is_multilingual", False):
        return without_times
    languages, tasks = getattr(said, "lang_to_id", {}), getattr(said, "task_to_id", {})
    language = str(getattr(said, "language", None)).strip("<|>")
    if f"<|{language}|>" not in languages:
        raise BadInput(
            "the checkpoint knows several languages, and does not say which it hears: set language (such as en) and "
            "task in its generation_config.json"
        )
    return (
        languages[f"<|{language}|>"],
        *_list_tokens(tasks.get(getattr(said, "task", None) or "transcribe")),
        *without_times,
    )


def _list_tokens(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)
