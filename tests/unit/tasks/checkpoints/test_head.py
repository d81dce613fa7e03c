import json
from itertools import product
from pathlib import Path

import pytest

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import SourceFiles
from tasks.checkpoints.head import fit_head
from tasks.checkpoints.source import from_folder
from tasks.graphs.export import check_export, export_checkpoint
from tasks.model_tasks.inputs.texts import open_text_encoder
from tests.support.task_recipes import save_encoder
from tests.support.tiny import tiny_bert

WORDS = ("film", "music", "library", "editor")
TEXTS = [f"a {mood} {one} and {two}" for mood, one, two in product(("good", "bad"), WORDS, WORDS)]
LABELS = [int("bad" in text) for text in TEXTS]
NAMES = ("praise", "blame")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SourceFiles:
    root = tmp_path_factory.mktemp("encoder")
    return from_folder(tiny_bert(root / "made", ()), name="tiny", task="feature-extraction", into=root / "taken")


def fit(encoder: SourceFiles, into: Path, *, seed: int = 1, labels: list[int] = LABELS) -> SourceFiles:
    rows = Rows(tuple(TEXTS), tuple(labels), NAMES, 0, "0" * 64)
    return fit_head(encoder, rows, seed=seed, max_length=16, into=into)


def test_same_rows_and_seed_give_the_same_checkpoint(encoder: SourceFiles, tmp_path: Path) -> None:
    one, two = fit(encoder, tmp_path / "one"), fit(encoder, tmp_path / "two")
    other = fit(encoder, tmp_path / "other", seed=2)
    assert one == two
    assert one.digest != other.digest
    assert one.source.revision == one.digest


def test_fitted_checkpoint_exports_like_any_other(encoder: SourceFiles, tmp_path: Path) -> None:
    fitted = fit(encoder, tmp_path / "fitted")
    graph = export_checkpoint(fitted, into=tmp_path / "onnx")
    feed = open_text_encoder(fitted.directory, graph.input_names, {"sequence": 16}).encode(TEXTS)
    check_export(fitted, graph, feed)
    assert fitted.source.task == "text-classification"
    assert fitted.source.classes == NAMES
    assert fitted.source.origin.startswith("folder:made + head fitted on ")
    config = json.loads((fitted.directory / "config.json").read_text())
    assert config["label2id"] == {"praise": 0, "blame": 1}
    assert config["problem_type"] == "single_label_classification"


def test_a_head_takes_the_place_of_an_encoders_pooling(tmp_path: Path) -> None:
    save_encoder(tmp_path / "made")
    pooled = from_folder(tmp_path / "made", name="tiny", task="feature-extraction", into=tmp_path / "taken")
    assert (pooled.directory / "1_Pooling" / "config.json").is_file()
    fitted = fit(pooled, tmp_path / "fitted")
    assert not any("ooling" in file.path or file.path == "modules.json" for file in fitted.files)


def test_progress_ends_with_all_rows(encoder: SourceFiles, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    fit_head(
        encoder,
        Rows(tuple(TEXTS), tuple(LABELS), NAMES, 0, "0" * 64),
        seed=1,
        max_length=16,
        into=tmp_path / "x",
        on_progress=lambda what, done: seen.append((what, done)),
    )
    assert seen[-1] == ("encode rows", 1)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (LABELS[:-1], "32 texts but 31 labels"),
        ([*LABELS[:-1], 2], "label 2 has no name"),
        ([-1, *LABELS[1:]], "label -1 has no name"),
        ([0] * len(TEXTS), "no text is labelled blame"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    encoder: SourceFiles, tmp_path: Path, labels: list[int], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        fit(encoder, tmp_path / "x", labels=labels)
