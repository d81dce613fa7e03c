"""How a checkpoint pools is read from sentence-transformers' files, and what cannot be put into a graph is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from registry.errors import BadInput
from tasks.checkpoints.pooling import Pooling, read_pooling


def write(folder: Path, kinds: list[str], pooling: Any = None) -> Path:
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("kinds", "settings", "pooling"),
    [
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode_mean_tokens": True}, Pooling("mean", normalize=True)),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
            Pooling("cls"),
        ),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, Pooling("max")),
    ],
)
def test_pooling_is_what_the_files_say(tmp_path: Path, kinds: list[str], settings: Any, pooling: Pooling) -> None:
    assert read_pooling(write(tmp_path, kinds, settings)) == pooling


def test_an_encoder_without_these_files_takes_the_mean(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == Pooling("mean", normalize=False)


@pytest.mark.parametrize(
    ("kinds", "settings", "words"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_cls_token": True}, "modules Transformer, Pooling, Dense"),
        (["Transformer", "Pooling"], None, "has no 1_Pooling/config.json"),
        (["Transformer", "Pooling"], {"pooling_mode_lasttoken": True}, "asks for pooling_mode_lasttoken"),
        (["Transformer", "Pooling"], {}, "asks for no pooling"),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            "asks for pooling_mode_cls_token, pooling_mode_max_tokens",
        ),
        (["Transformer", "Pooling"], [], "is not a JSON object"),
    ],
)
def test_what_cannot_be_put_into_a_graph_is_refused(
    tmp_path: Path, kinds: list[str], settings: Any, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        read_pooling(write(tmp_path, kinds, settings))


@pytest.mark.parametrize("content", ["{}", "[1]", "[", "[" * 2000])
def test_modules_of_another_form_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=r"modules\.json"):
        read_pooling(tmp_path)
