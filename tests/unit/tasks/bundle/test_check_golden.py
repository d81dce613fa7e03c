"""A host that prepares inputs or answers otherwise than the publisher is told apart from one that does not."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from registry.bundle.manifest import MANIFEST_FILE, write_manifest
from registry.host.cpu import Cpu
from registry.records import Backend, EngineManifest, Machine
from tasks.backends.ort import cpu as ort
from tasks.bundle.check_golden import GoldenCheck, Outcome, check_golden
from tasks.bundle.golden import Golden
from tests.support.golden_bundles import edit_golden, golden_bundle, reseal
from tests.support.triton_bundles import L4

SAME, DIFFERS, NOT_RUN = Outcome.SAME, Outcome.DIFFERS, Outcome.NOT_RUN
Bundle = tuple[Path, EngineManifest]


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle that was built with the installed ONNX Runtime."""
    folder, _ = golden_bundle(tmp_path / "bundle")
    return folder, reseal(folder, backend_version=ort.version())


def check(bundle: Bundle) -> tuple[GoldenCheck, GoldenCheck]:
    preprocessing, answers = check_golden(*bundle)
    return preprocessing, answers


def change_weights(engine: Path, share: float) -> None:
    """Multiply every weight of the classifier."""
    model = onnx.load(engine)
    (weights,) = (each for each in model.graph.initializer if each.name == "weights")
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights) * (1 + share), "weights"))
    onnx.save(model, engine)


def change_answers(share: float) -> Callable[[Golden], Golden]:
    """Record answers that were larger by a share."""

    def edit(golden: Golden) -> Golden:
        rows = []
        for row in golden.rows:
            outputs = (replace(each, values=tuple(v * (1 + share) for v in each.values)) for each in row.outputs)
            rows.append(replace(row, outputs=tuple(outputs)))
        return replace(golden, rows=tuple(rows))

    return edit


def test_the_host_that_recorded_them_does_the_same(golden: Bundle) -> None:
    preprocessing, answers = check(golden)
    assert preprocessing.line == "preprocessing: same, 3 golden inputs"
    assert (answers.outcome, answers.largest_difference, answers.remark) == (SAME, 0.0, "")
    assert answers.line == "answers: same, 3 golden inputs, largest difference 0 (tolerance 1e-05)"


def test_a_changed_tokenizer_is_caught(golden: Bundle) -> None:
    folder, _ = golden
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["film"], vocabulary["bad"] = vocabulary["bad"], vocabulary["film"]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    preprocessing, answers = check((folder, reseal(folder)))
    assert preprocessing.line == "preprocessing: differs, 1 of 3 golden inputs"
    assert "first input_ids of number 2" in preprocessing.problem
    assert answers.outcome is SAME  # the two words only changed places


def test_a_tokenizer_that_cannot_be_opened_here_is_said(golden: Bundle) -> None:
    folder, _ = golden
    (folder / "tokenizer.json").write_text('{"version": "9.0"}', encoding="utf-8")
    preprocessing, answers = check((folder, reseal(folder)))
    assert (preprocessing.outcome, preprocessing.differing) == (DIFFERS, 3)
    assert "cannot be prepared here" in preprocessing.problem
    assert (answers.outcome, answers.problem) == (NOT_RUN, "")


def test_versions_that_prepare_inputs_otherwise_are_named(golden: Bundle) -> None:
    folder, manifest = golden
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    manifest = replace(reseal(folder), toolchain=(("tokenizers", "0.1.0"), ("torch", "1.0")))
    preprocessing, _ = check((folder, manifest))
    assert "what the engine was released with (tokenizers 0.1.0), and verify again" in preprocessing.problem


def test_a_changed_engine_is_caught(golden: Bundle) -> None:
    folder, _ = golden
    change_weights(folder / "engine.onnx", 0.5)
    preprocessing, answers = check((folder, reseal(folder)))
    assert preprocessing.outcome is SAME
    assert (answers.outcome, answers.differing) == (DIFFERS, 3)
    assert answers.largest_difference == pytest.approx(0.5)
    assert "3 of 3 golden inputs are answered otherwise" in answers.problem
    assert "do not serve it" in answers.problem


@pytest.mark.parametrize(("share", "outcome"), [(0.9e-5, SAME), (1.2e-5, DIFFERS)])
def test_the_tolerance_of_the_same_kind_of_host_is_kept(share: float, outcome: Outcome, golden: Bundle) -> None:
    folder, _ = golden
    assert check((folder, edit_golden(folder, change_answers(share))))[1].outcome is outcome


@pytest.mark.parametrize(("share", "outcome"), [(0.9e-4, SAME), (1.2e-4, DIFFERS)])
def test_another_instruction_set_is_mentioned_and_has_a_tolerance_of_its_own(
    share: float, outcome: Outcome, golden: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = golden
    edit = change_answers(share)
    machine = Machine("another", 2, instruction_set="avx2")
    manifest = edit_golden(folder, lambda golden: replace(edit(golden), answered_on=machine))
    monkeypatch.setattr("tasks.bundle.check_golden.read_cpu", lambda: Cpu("this", "avx512-vnni"))
    answers = check((folder, manifest))[1]
    assert (answers.outcome, answers.tolerance) == (outcome, 1e-4)
    assert "recorded on a CPU with avx2, this host has avx512-vnni" in answers.line
    assert outcome is SAME or answers.remark in answers.problem


def test_another_version_of_the_backend_is_mentioned(golden: Bundle) -> None:
    folder, _ = golden
    answers = check((folder, reseal(folder, backend_version="1.0.0")))[1]
    assert (answers.outcome, answers.tolerance) == (SAME, 1e-4)
    assert answers.remark == f"with onnxruntime 1.0.0, here it is {ort.version()}"


def test_an_engine_is_compared_with_its_graph_by_a_tolerance_of_its_own(golden: Bundle) -> None:
    folder, _ = golden
    answers = check((folder, edit_golden(folder, lambda each: replace(each, subject="onnx-graph"))))[1]
    assert (answers.outcome, answers.tolerance) == (SAME, 0.02)
    assert "recorded by the exact ONNX graph" in answers.remark


def test_an_answer_of_another_shape_differs(golden: Bundle) -> None:
    folder, _ = golden

    def widen(golden: Golden) -> Golden:
        row = golden.rows[0]
        wide = replace(row.outputs[0], shape=(1, 4), values=(*row.outputs[0].values, 0.0, 0.0))
        return replace(golden, rows=(replace(row, outputs=(wide,)), *golden.rows[1:]))

    answers = check((folder, edit_golden(folder, widen)))[1]
    assert (answers.outcome, answers.differing, answers.largest_difference) == (DIFFERS, 1, None)


def test_a_host_without_the_gpu_prepares_the_inputs_and_says_what_it_lacks(golden: Bundle) -> None:
    folder, manifest = golden
    build = replace(manifest.build, backend=Backend.TENSORRT, target=L4, backend_version="11.2.1.2")
    manifest = replace(manifest, build=build)
    (folder / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    preprocessing, answers = check((folder, manifest))
    assert preprocessing.outcome is SAME
    assert answers.outcome is NOT_RUN
    assert "verify on one of target l4" in answers.problem


def test_what_a_check_says_is_json(golden: Bundle) -> None:
    from flows.commands.console import plain

    values: Any = [plain(each) for each in check(golden)]
    assert json.loads(json.dumps(values)) == values
    assert [each["outcome"] for each in values] == ["same", "same"]
