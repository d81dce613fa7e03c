"""The report says what was measured of an engine that ran, and nothing of one that did not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from registry.records import GateResult, Measurement, Precision, Verdict
from tasks.measurement.row_results import RowResults, count_by_class, list_flips, reference_of
from tasks.model_tasks.scores import ACCURACY
from tasks.report.page.document import MOST_FLIPS, describe_release
from tasks.report.page.gates import describe_gates
from tasks.report.rows import EngineRow
from tasks.verdicts.gates import Limits
from tests.support.reports import CLASSES, HOST, make_report_inputs

INPUTS = make_report_inputs()
ENGINES = {(each["target"], each["precision"]): each for each in describe_release(INPUTS)["engines"]}


def test_the_report_is_json() -> None:
    document = describe_release(INPUTS)
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize("name", [("rtx-4090", "fp32"), ("cpu", "fp8")])
def test_an_engine_that_did_not_run_has_no_figures(name: tuple[str, str]) -> None:
    engine = ENGINES[name]
    assert not engine["ran"]
    assert engine["figures"] == {}
    assert engine["flips"] is None
    assert engine["latency_ms"] is None
    assert engine["dominated_by"] is None
    assert all(gate["measured"] is None for gate in engine["gates"])


def test_an_engine_is_dominated_by_one_that_is_no_slower_and_no_worse() -> None:
    assert ENGINES["cpu", "fp16"]["dominated_by"] is not None
    assert ENGINES["cpu", "fp32"]["dominated_by"] is None
    assert ENGINES["cpu", "int8"]["dominated_by"] is None


def test_flips_are_the_rows_whose_label_changed_with_both_answers_and_the_truth() -> None:
    answered = INPUTS.engines[1].answered
    assert answered is not None
    changed = np.flatnonzero(np.array(answered.labels) != np.array(answered.reference_labels))
    flips = ENGINES["cpu", "int8"]["flips"]
    assert (flips["count"], flips["of"]) == (len(changed), len(answered.labels))
    assert [flip["row"] for flip in flips["rows"]] == changed.tolist()
    for flip in flips["rows"]:
        assert flip["after"] == CLASSES[answered.labels[flip["row"]]]
        assert flip["before"] == CLASSES[answered.reference_labels[flip["row"]]]
        assert flip["truth"] == CLASSES[answered.truth[flip["row"]]]


def test_a_report_lists_so_many_flips_and_counts_all() -> None:
    rows = 3 * MOST_FLIPS
    ones, zeros = tuple((1.0,) for _ in range(rows)), tuple((0.0,) for _ in range(rows))
    answered = RowResults("f" * 64, zeros, ones)
    engine = replace(INPUTS.engines[1], answered=answered)
    (described,) = describe_release(replace(INPUTS, engines=(engine,)))["engines"]
    assert described["flips"]["count"] == rows
    assert len(described["flips"]["rows"]) == MOST_FLIPS


def test_rows_without_a_label_flip_where_their_scores_do() -> None:
    before = RowResults("f" * 64, ((1.0,), (0.5,)), ((1.0,), (0.5,)))
    after = replace(before, scores=((1.0,), (0.25,)))
    (flip,) = list_flips(ACCURACY, before, after, ())
    assert (flip.row, flip.before, flip.after, flip.truth) == (1, "0.5", "0.25", "")
    assert count_by_class(before, after, ()) == ()


def test_the_class_that_lost_most_comes_first_and_all_rows_are_counted_once() -> None:
    answered = INPUTS.engines[1].answered
    assert answered is not None
    changes = count_by_class(reference_of(answered), answered, CLASSES)
    losses = [(change.after - change.before) / change.rows for change in changes]
    assert losses == sorted(losses)
    assert sum(change.rows for change in changes) == len(answered.truth)


def test_a_machine_is_named_once_with_what_ran_there() -> None:
    (machine,) = describe_release(INPUTS)["machines"]
    assert (machine["host_cpu"], machine["instruction_set"]) == (HOST.host_cpu, HOST.instruction_set)
    assert machine["engines"] == ["cpu fp32", "cpu int8", "cpu fp16"]


def test_the_candidate_is_promoted_by_the_command_that_names_its_version() -> None:
    commands = [each["command"] for each in describe_release(INPUTS)["commands"]]
    assert "enginery promote sst2 --target cpu --version 1" in commands
    assert not any("rtx-4090" in command for command in commands)


@pytest.mark.parametrize(
    ("gate", "verdict", "words"),
    [
        ("accuracy_loss", Verdict.PASSED, "below 3.00 %"),
        ("accuracy_loss", Verdict.FAILED, "of 1.00 %"),
        ("accuracy_loss", Verdict.INCONCLUSIVE, "evaluation rows"),
        ("speedup", Verdict.INCONCLUSIVE, "quieter machine"),
        ("latency_p99", Verdict.FAILED, "above the lower bound"),
        ("latency_p99", Verdict.UNMEASURED, "worker that has the target"),
    ],
)
def test_a_gate_says_what_would_change_it(gate: str, verdict: Verdict, words: str) -> None:
    figure = Measurement(gate, 0.02, "share", 100, "engine", "d" * 64, HOST, 0.01, 0.03)
    row = EngineRow("m", "cpu", Precision.INT8, INPUTS.engines[0].row.backend, "built", "")
    own = None if verdict is Verdict.UNMEASURED else figure
    (line,) = describe_gates([GateResult(gate, verdict, "", own)], Limits("accuracy", 0.02, 10.0, 1.2), row)
    assert words in line["change"]
