"""Weights that do not parse, or are not those that config.json describes, are refused by their headers."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from registry.errors import BadInput
from tasks.checkpoints.source import list_checkpoint
from tests.support.images import save_classifier
from tests.support.tiny import tiny_bert, tiny_deberta


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 30}, r"vocab_size 30, but the weights have 19 \(bert\.embeddings\.word_embeddings\.weight\)"),
        ({"hidden_size": 64}, "hidden_size 64, but the weights have 32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers 3, but the weights have 2"),
        ({"num_hidden_layers": 1}, "num_hidden_layers 1, but the weights have 2"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c"}},
            r"classes \(id2label\) of 3, but the weights have 2 \(classifier",
        ),
        ({"id2label": None, "num_labels": 4}, r"classes \(id2label\) of 4, but the weights have 2"),
    ],
)
def test_a_config_of_other_weights_is_refused(changes: dict[str, Any], words: str, checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(BadInput, match=rf"config\.json gives .*{words}.*: correct config\.json"):
        list_checkpoint(checkpoint)


def test_a_head_of_another_size_is_refused(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["classifier.weight"] = np.tile(tensors["classifier.weight"], (3, 1))
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match="of 2, but the weights have 6"):
        list_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda weights: weights[:-100],
        lambda weights: weights[:0],
        lambda weights: weights[:6],
        lambda weights: struct.pack("<Q", 2**60) + weights[8:],
        lambda weights: weights[:8] + b"x" * (len(weights) - 8),
        lambda weights: b"PK\x03\x04" + weights,
    ],
    ids=["cut short", "empty", "half a length", "endless header", "no JSON", "a zip, as pickles are"],
)
def test_what_does_not_parse_is_refused(spoil: Any, checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(BadInput, match="is not a safetensors file"):
        list_checkpoint(checkpoint)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # of DeBERTa's own code
def test_other_architectures_are_read_by_their_own_names(tmp_path: Path) -> None:
    from transformers import (
        AlbertConfig,
        AlbertForSequenceClassification,
        DistilBertConfig,
        DistilBertForSequenceClassification,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    sizes = {"vocab_size": 19, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    for name, network in {
        "albert": AlbertForSequenceClassification(AlbertConfig(**sizes, embedding_size=8, intermediate_size=64)),
        "roberta": RobertaForSequenceClassification(RobertaConfig(**sizes, intermediate_size=64, num_labels=3)),
        "distilbert": DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=19, dim=32, n_layers=2, n_heads=4, hidden_dim=64)
        ),
    }.items():
        network.save_pretrained(tmp_path / name)
        assert "model.safetensors" in list_checkpoint(tmp_path / name)
    assert "model.safetensors" in list_checkpoint(tiny_deberta(tmp_path / "deberta"))


def test_the_head_of_an_image_model_has_the_classes_of_its_config(tmp_path: Path) -> None:
    """ConvNeXT's head is `classifier`, ResNet's `classifier.1`, behind a layer without weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    ).save_pretrained(tmp_path / "resnet")
    save_classifier(tmp_path / "convnext")
    for name in ("resnet", "convnext"):
        assert "model.safetensors" in list_checkpoint(tmp_path / name)
        file = tmp_path / name / "config.json"
        content = json.loads(file.read_text()) | {"id2label": {"0": "a", "1": "b"}, "num_labels": None}
        file.write_text(json.dumps(content))
        with pytest.raises(BadInput, match=r"classes \(id2label\) of 2, but the weights have 3 \(classifier"):
            list_checkpoint(tmp_path / name)
