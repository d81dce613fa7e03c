"""Golden inputs are chosen alike each time, are read as they were written, and anything else is refused."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
from numpy.typing import NDArray

from registry.bundle.manifest import verify_bundle
from registry.errors import BadInput, DigestMismatch, MeasurementError, NotFound
from registry.records import Backend, Machine, Precision, Tensor
from tasks.bundle import golden as golden_module
from tasks.bundle.golden import GOLDEN_FILE, TOLERANCES, FileContent, GoldenRow, parse_golden, read_golden
from tasks.bundle.record_golden import LARGEST_INPUT, MOST_VALUES, choose_inputs, fits_profile, record_golden
from tasks.model_tasks import MODEL_TASKS
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tests.support.golden_bundles import TEXTS, add_golden, edit_golden, golden_bundle
from tests.support.manifests import make_manifest
from tests.support.triton_bundles import PROFILE, TOKENS, write_bundle

MACHINE = Machine("x86", 2, instruction_set="avx2")
BUILD = replace(make_manifest(()).build, precision=Precision.FP32, backend=Backend.ONNXRUNTIME)


class Encodes:
    """An encoder whose feed is the length of a text."""

    def encode(self, inputs: Any) -> dict[str, NDArray[Any]]:
        return {"length": np.array([[len(each)] for each in inputs], dtype=np.int64)}

    def batches(self, _inputs: Any, _size: int) -> Any:
        raise AssertionError("golden inputs run alone")


class Gives:
    """A session that answers with the numbers given."""

    input_names, output_names = ("length",), ("logits",)

    def __init__(self, answer: NDArray[Any]) -> None:
        self.answer = answer

    def run(self, _feed: Any) -> list[NDArray[Any]]:
        return [self.answer]


def record(answer: NDArray[Any], inputs: tuple[Any, ...] = ("a text",)) -> Any:
    return record_golden(Gives(answer), TEXT_CLASSIFICATION, Encodes(), inputs, build=BUILD, machine=MACHINE)


def test_the_shortest_the_longest_and_others_between_are_chosen() -> None:
    texts = ["x" * size for size in range(1, 101)]
    chosen = choose_inputs(texts, 4)
    assert [len(text) for text in chosen] == [1, 34, 67, 100]


@pytest.mark.parametrize(
    "inputs",
    [
        [f"text {number}" for number in range(40)],
        [("a question", f"a context {number}") for number in range(40)],
        [bytes([number]) * 9 for number in range(40)],
    ],
)
def test_the_order_of_the_rows_does_not_matter(inputs: list[Any]) -> None:
    shuffled = random.Random(1).sample(inputs, len(inputs))  # noqa: S311  # rows, not secrets
    assert choose_inputs(shuffled, 8) == choose_inputs(inputs, 8)
    assert len(set(choose_inputs(inputs, 8))) == 8


@pytest.mark.parametrize(("rows", "count", "expected"), [(3, 8, 3), (1, 8, 1), (0, 8, 0), (9, 1, 1), (9, 0, 0)])
def test_as_many_are_chosen_as_there_are_and_as_were_asked_for(rows: int, count: int, expected: int) -> None:
    assert len(choose_inputs([f"{number}" for number in range(rows)], count)) == expected


def test_rows_that_are_the_same_are_chosen_once() -> None:
    assert choose_inputs(["once", "twice", "twice"], 3) == ("once", "twice")


def test_a_large_input_is_not_chosen() -> None:
    assert choose_inputs(["small", "x" * (LARGEST_INPUT + 1), b"y" * (LARGEST_INPUT + 1)], 3) == ("small",)


@pytest.mark.parametrize(("tokens", "fits"), [(1, False), (2, True), (16, True), (17, False)])
def test_an_input_that_an_engine_does_not_take_alone_is_known(tokens: int, *, fits: bool) -> None:
    feed = {tensor.name: np.zeros((1, tokens), np.int64) for tensor in TOKENS}
    assert fits_profile(feed, TOKENS, [PROFILE]) is fits
    optimum = [Tensor(tensor.name, "int64", ("batch_size", "sequence_length")) for tensor in TOKENS]
    assert fits_profile(feed, optimum, [PROFILE]) is fits


@pytest.mark.parametrize(
    "row_input",
    ["ein Text\u2028\x00 \U0001f3b5", ("one", "other"), b"\x89PNG\r\n\x00\xff"],
    ids=["text", "pair", "image"],
)
def test_every_kind_of_input_and_every_float_comes_back_as_it_was(row_input: Any, tmp_path: Path) -> None:
    answer = np.array([[0.1, 1 / 3, -0.0, 1e-38, 3.0]], np.float32)
    golden = record(answer, (row_input,))
    golden_module.write_golden(golden, tmp_path)
    read = parse_golden((tmp_path / GOLDEN_FILE).read_bytes(), GOLDEN_FILE)
    assert read.rows[0].decoded == row_input
    np.testing.assert_array_equal(read.rows[0].outputs[0].array.astype(np.float32), answer)
    assert (read.subject, read.answered_on, read.tolerance) == ("engine", MACHINE, TOLERANCES[Precision.FP32])


def test_every_precision_has_tolerances_that_grow_with_the_distance() -> None:
    assert TOLERANCES.keys() == set(Precision)
    for each in TOLERANCES.values():
        assert 0 < each.same_kind < each.other_kind <= each.from_graph < 1


def test_every_task_has_inputs_that_can_be_written(tmp_path: Path) -> None:
    for task in MODEL_TASKS.values():
        golden = record(np.ones((1, 2), np.float32), task.example_inputs)
        golden_module.write_golden(golden, tmp_path)
        read = parse_golden((tmp_path / GOLDEN_FILE).read_bytes(), GOLDEN_FILE)
        assert [row.decoded for row in read.rows] == list(task.example_inputs)


def test_an_answer_that_is_no_number_is_not_recorded() -> None:
    with pytest.raises(MeasurementError, match="NaN or infinite"):
        record(np.array([[np.nan]], np.float32))


def test_an_answer_of_unusual_size_is_left_out() -> None:
    assert record(np.zeros((1, MOST_VALUES + 1), np.float32)) is None
    assert record(np.zeros((1, MOST_VALUES), np.float32)) is not None


def test_a_bundle_without_golden_inputs_says_so(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    with pytest.raises(NotFound, match="has no golden inputs"):
        read_golden(bundle, verify_bundle(bundle))


def test_the_inputs_of_a_bundle_are_read(tmp_path: Path) -> None:
    bundle, manifest = golden_bundle(tmp_path / "bundle")
    assert [row.row_input for row in read_golden(bundle, manifest).rows] == list(TEXTS)


def test_a_file_that_was_changed_after_the_check_is_not_read(tmp_path: Path) -> None:
    bundle, manifest = golden_bundle(tmp_path / "bundle")
    raw = (bundle / GOLDEN_FILE).read_bytes()
    (bundle / GOLDEN_FILE).write_bytes(raw.replace(b"good", b"evil"))
    with pytest.raises(DigestMismatch, match="changed since it was verified"):
        read_golden(bundle, manifest)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, manifest = golden_bundle(tmp_path / "bundle")
    monkeypatch.setattr(golden_module, "LARGEST_FILE", 100)
    with pytest.raises(BadInput, match="at most 100 are read"):
        read_golden(bundle, manifest)


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(surprise=1),
        lambda d: d.update(rows=[]),
        lambda d: d["rows"][0].update(row_input=7),
        lambda d: d["rows"][0].update(row_input={"base64": "é"}),
        lambda d: d["rows"][0].update(row_input={"base64": "AAA"}),
        lambda d: d["rows"][0].update(row_input={"pickle": "gASVAAAA"}),
        lambda d: d["rows"][0]["outputs"][0].update(shape=[1, 3]),
        lambda d: d["rows"][0]["outputs"][0].update(shape=[-1, -2]),
        lambda d: d["rows"][0]["outputs"][0].update(values=["0.5", "0.5"]),
        lambda d: d["tolerance"].pop("other_kind"),
    ],
)
def test_anything_else_than_what_is_written_is_refused(edit: Any, tmp_path: Path) -> None:
    bundle, _ = golden_bundle(tmp_path / "bundle")
    document = json.loads((bundle / GOLDEN_FILE).read_bytes())
    edit(document)
    with pytest.raises(BadInput, match="do not trust it"):
        parse_golden(rfc8785.dumps(document), GOLDEN_FILE)


@pytest.mark.parametrize("raw", [b"", b"[]", b"\x80\x04.", b"PK\x03\x04", b"{" * 100_000, b'{"rows":NaN}'])
def test_what_is_no_such_json_is_refused(raw: bytes) -> None:
    with pytest.raises(BadInput, match=GOLDEN_FILE):
        parse_golden(raw, GOLDEN_FILE)


def test_an_image_is_stored_as_its_file(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    add_golden(bundle)
    content = GoldenRow(FileContent("iVBORw=="), (), ())
    assert content.decoded == b"\x89PNG"
    manifest = edit_golden(bundle, lambda golden: replace(golden, rows=(*golden.rows, content)))
    assert read_golden(bundle, manifest).rows[-1].decoded == b"\x89PNG"
