"""A small T5 that starts with MiniLM's word embeddings, of the words that its rows have."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SIZES = {"d_kv": 32, "num_heads": 4, "d_ff": 512, "num_layers": 2, "num_decoder_layers": 2}
# The longest tokens that a word may be put together of, where it is none itself.
LETTERS = 1


def make_writer(pretrained: Path, tokenizer: Any, texts: Iterable[str]) -> tuple[Any, Any]:
    """Return a tokenizer with those tokens that the texts have, single letters and special ones, and a T5 for it.

    The output layer of all of MiniLM's 30,522 tokens would take most of the time.
    """
    import torch
    import transformers

    used = {number for row in tokenizer(list(texts), truncation=True)["input_ids"] for number in row}
    vocabulary = tokenizer.get_vocab()
    kept = sorted(
        number
        for token, number in vocabulary.items()
        if number in used or number in tokenizer.all_special_ids or len(token.removeprefix("##")) <= LETTERS
    )
    small = _keep_tokens(tokenizer, kept)
    config = transformers.T5Config(
        vocab_size=len(kept), d_model=384, decoder_start_token_id=small.cls_token_id, pad_token_id=small.pad_token_id,
        eos_token_id=small.sep_token_id, tie_word_embeddings=False, **SIZES,
    )  # fmt: skip
    network = transformers.T5ForConditionalGeneration(config)
    words = transformers.AutoModel.from_pretrained(pretrained).embeddings.word_embeddings.weight.detach()
    with torch.no_grad():
        network.shared.weight.copy_(words[kept] / words.std())
    # They are good already, and few rows would spoil those of rare words.
    network.shared.weight.requires_grad_(False)
    return small, network


def _keep_tokens(tokenizer: Any, kept: list[int]) -> Any:
    import tokenizers
    import transformers

    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    place = {old: new for new, old in enumerate(kept)}
    saved["model"]["vocab"] = {token: place[old] for token, old in saved["model"]["vocab"].items() if old in place}
    for token in saved["added_tokens"]:
        token["id"] = place[token["id"]]
    for token in saved["post_processor"]["special_tokens"].values():
        token["ids"] = [place[old] for old in token["ids"]]
    saved["padding"] = saved["truncation"] = None
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(saved)),
        model_max_length=tokenizer.model_max_length,
        **names,
    )
