"""Tiny checkpoints in Hugging Face layout, made in well under a second."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "good",
    "bad",
    "fine",
    "poor",
    "a",
    "the",
    "film",
    "music",
    "library",
    "editor",
    "for",
    "of",
    "and",
    "##s",
)


def tiny_bert(folder: Path, labels: tuple[str, ...] = ("negative", "positive"), *, seed: int = 0) -> Path:
    """Save a random BertForSequenceClassification (2 layers, width 32) and tokenizer; without labels a BertModel."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    # A wide initialisation: with BERT's 0.02 a tiny net gives nearly the same logits for every text.
    config = BertConfig(vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, initializer_range=0.5, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if labels:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
            BertForSequenceClassification(config).save_pretrained(folder)
        else:
            BertModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def tiny_deberta(folder: Path) -> Path:
    """Save a random DebertaV2ForSequenceClassification and tokenizer: its graph has branches (If)."""
    import torch
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = DebertaV2Config(
        vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, initializer_range=0.5, type_vocab_size=0,
        relative_attention=True, position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"], **sizes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, vocab.txt and tokenizer_config.json of a WordPiece tokenizer over WORDS."""
    vocab = {token: index for index, token in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 64, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
