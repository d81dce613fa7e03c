"""A tokenizer is a stranger's program: what fails, crashes, never ends or leaves the embedding is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.errors import BadInput
from tasks.checkpoints.encoder import try_encoder
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tests.support.own_tasks import MODULE, open_task
from tests.support.tiny import SPECIAL, WORDS, write_tokenizer

CONFIG = {"vocab_size": len(SPECIAL + WORDS)}
TEXTS = ("good film", "the good film and a fine library of the editor for music")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def spoil(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def replace_by(pattern: str, content: str) -> Callable[[dict[str, Any]], object]:
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
    return lambda tokenizer: tokenizer.update(normalizer=replace)


def test_a_tokenizer_that_works_gives_the_tokens_of_each_row(folder: Path) -> None:
    assert try_encoder(TEXT_CLASSIFICATION, folder, TEXTS, {"sequence": 8}, CONFIG) == (4, 8)
    assert try_encoder(TEXT_CLASSIFICATION, folder, TEXTS, {"sequence": 8}, {}) == (4, 8)


def test_no_tokenizer_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no tokenizer\.json"):
        try_encoder(TEXT_CLASSIFICATION, tmp_path, TEXTS, {"sequence": 8}, CONFIG)


@pytest.mark.parametrize("content", [b"[1]", b"{}", b"hello", b"", b"\x00\xff" * 50, b"[" * 5000 + b"]" * 5000])
def test_a_file_of_another_form_is_refused(content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"tokenizer\.json does not work as a tokenizer \(.*\): save the checkpoint"):
        try_encoder(TEXT_CLASSIFICATION, folder, TEXTS, {"sequence": 8}, CONFIG)


def test_a_regex_that_the_library_gives_up_on_is_refused_without_a_word_of_rust(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(folder, replace_by(r"^(([a-z ])+)+\d$", "x"))
    with pytest.raises(BadInput, match=r"does not work as a tokenizer .*retry-limit"):
        try_encoder(TEXT_CLASSIFICATION, folder, TEXTS, {"sequence": 8}, CONFIG)
    assert capfd.readouterr() == ("", "")


def test_a_regex_that_never_ends_is_ended(folder: Path) -> None:
    spoil(folder, replace_by("a+[^a]", "x"))
    with pytest.raises(
        BadInput, match=r"cannot encode the first 1 rows \(its process has run for 2 s, and was ended\)"
    ):
        try_encoder(TEXT_CLASSIFICATION, folder, ("a" * 900_000,), {"sequence": 8}, CONFIG, limit_seconds=2)


def test_a_normalizer_that_makes_gigabytes_ends_its_own_process_alone(folder: Path) -> None:
    double = {"type": "Replace", "pattern": {"String": "o"}, "content": "oo"}
    spoil(folder, lambda tokenizer: tokenizer.update(normalizer={"type": "Sequence", "normalizers": [double] * 40}))
    with pytest.raises(BadInput, match=r"tokenizer\.json cannot encode the first 2 rows \(its process "):
        try_encoder(TEXT_CLASSIFICATION, folder, TEXTS, {"sequence": 8}, CONFIG)


@pytest.mark.parametrize(
    ("change", "largest"),
    [
        (lambda tokenizer: tokenizer["model"]["vocab"].update(zebra=5000), 5000),
        (lambda tokenizer: tokenizer["post_processor"]["special_tokens"]["[SEP]"].update(ids=[70000]), 70000),
    ],
    ids=["vocabulary", "template"],
)
def test_ids_beyond_the_embedding_are_refused(
    change: Callable[[dict[str, Any]], object], largest: int, folder: Path
) -> None:
    spoil(folder, change)
    words = rf"token ids up to {largest}, but config\.json's vocab_size is {CONFIG['vocab_size']}: "
    with pytest.raises(BadInput, match=words):
        try_encoder(TEXT_CLASSIFICATION, folder, TEXTS, {"sequence": 8}, CONFIG)
    assert try_encoder(TEXT_CLASSIFICATION, folder, TEXTS, {"sequence": 8}, {"vocab_size": largest + 1})


def test_preprocessing_of_a_users_own_that_never_ends_is_ended(tmp_path: Path) -> None:
    task = open_task(tmp_path, MODULE.replace("    scale = float", "    while True: pass\n    scale = float"))
    with pytest.raises(BadInput, match=r"preprocess\(\) cannot encode the first 1 rows \(its process has run for 3 s"):
        try_encoder(task, tmp_path, ("[[1,2,3]]",), {}, {}, limit_seconds=3)
