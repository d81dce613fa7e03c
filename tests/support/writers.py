"""Tiny random encoder-decoders of the architectures that write text."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from registry.records import SourceFiles
from tests.support.tiny import SPECIAL, WORDS, write_tokenizer

VOCABULARY = len(SPECIAL + WORDS)
PAD, END = SPECIAL.index("[PAD]"), SPECIAL.index("[SEP]")
LAYERS = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "init_std": 0.5, "pad_token_id": PAD, "eos_token_id": END,
}  # fmt: skip


def _make_t5(**settings: Any) -> Any:
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=4.0,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END, **settings,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _make_bart(**settings: Any) -> Any:
    import transformers

    config = transformers.BartConfig(**LAYERS, bos_token_id=2, decoder_start_token_id=END, **settings)
    return transformers.BartForConditionalGeneration(config)


def _make_marian(**settings: Any) -> Any:
    import transformers

    config = transformers.MarianConfig(**LAYERS, decoder_start_token_id=PAD, **settings)
    return transformers.MarianMTModel(config)


WRITERS: Mapping[str, Callable[..., Any]] = {"t5": _make_t5, "bart": _make_bart, "marian": _make_marian}


def save_writer(folder: Path, kind: str = "t5", seed: int = 0, **generation: Any) -> Any:
    """Save a random encoder-decoder and its tokenizer, and return it; `generation` are settings of its own."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = WRITERS[kind]().eval()
    # transformers would end each text at the limit of new tokens with this one.
    told = {"bad_words_ids": [[PAD]]} if kind == "marian" else {}
    for name, value in ({"forced_eos_token_id": None} | told | generation).items():
        setattr(module.generation_config, name, value)
    module.save_pretrained(folder)
    write_special_tokenizer(folder)
    return module


def write_special_tokenizer(folder: Path) -> None:
    """Write the tiny tokenizer with tokens that are special, as those of real encoder-decoders are."""
    from tokenizers import Tokenizer

    write_tokenizer(folder)
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(file)


def save_whisper(folder: Path, *, seconds: int = 1, **generation: Any) -> Any:
    """Save a random Whisper of 16 mels and audio of `seconds`, its feature extractor and a tokenizer; return it."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    layers = {name: value for name, value in LAYERS.items() if name != "max_position_embeddings"}
    config = transformers.WhisperConfig(
        **layers, num_mel_bins=16, max_source_positions=50 * seconds, max_target_positions=32, bos_token_id=2,
        decoder_start_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = transformers.WhisperForConditionalGeneration(config).eval()
    # Else what transformers does not know itself is left out when it is loaded again.
    module.generation_config._from_model_config = False
    told = {"suppress_tokens": None, "begin_suppress_tokens": None, "no_timestamps_token_id": 4}
    for name, value in (told | generation).items():
        setattr(module.generation_config, name, value)
    module.save_pretrained(folder)
    write_special_tokenizer(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=seconds).save_pretrained(folder)
    return module


def read_writer(folder: Path, task: str = "text2text-generation") -> SourceFiles:
    """Return a saved encoder-decoder as a source for a task."""
    from tasks.checkpoints.source import from_folder

    return from_folder(folder, name="tiny", task=task, into=folder.parent / "source")
