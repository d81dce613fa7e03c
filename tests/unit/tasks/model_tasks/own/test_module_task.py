"""A task of the user's own: what its functions give reaches the contract, and each wrong return is a sentence."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from registry.errors import BadInput
from tasks.model_tasks.own.code import TASK_FILE
from tasks.model_tasks.own.module_task import ModuleTask
from tests.support.own_tasks import AXES, MODULE, open_task, write_module

ROW = {"series": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "next": 0.5}
NAMES = ("series", "length")
OUTPUTS = [np.array([0.25], np.float32), np.zeros((1, 2, 4), np.float32)]


def test_rows_become_feeds_answers_and_scores(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    pair = task.read_row(ROW, None)
    assert pair is not None
    encoder = task.open_encoder(tmp_path, NAMES, {})
    feed = encoder.encode([pair[0]])
    np.testing.assert_allclose(feed["series"][0, 1], [0.4, 0.5, 0.6], rtol=1e-6)
    assert feed["length"].tolist() == [2]
    answers = task.answers(OUTPUTS, [pair[0]], encoder)
    (metric,) = task.metrics
    scores = metric.score(answers, [pair[1]], answers)
    assert scores.tolist() == [[0.25, 1.0]]
    assert metric.figure(np.array([[1.0, 1.0], [0.5, 1.0]])) == 0.75
    assert task.read_row({"series": [], "next": 1.0}, None) is None


def test_a_task_reaches_other_processes_and_runs_the_copy_in_the_source(tmp_path: Path) -> None:
    task = open_task(tmp_path / "mine")
    write_module(tmp_path / "source").rename(tmp_path / "source" / TASK_FILE)
    (tmp_path / "source" / "scale.txt").write_text("1", encoding="utf-8")
    sent = pickle.loads(pickle.dumps(task))  # noqa: S301  # our own bytes
    pair = sent.read_row(ROW, None)
    mine, copied = (sent.open_encoder(tmp_path / name, NAMES, {}).encode([pair[0]]) for name in ("mine", "source"))
    np.testing.assert_allclose(10 * mine["series"], copied["series"], rtol=1e-6)


def test_code_that_was_changed_does_not_run(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    write_module(tmp_path, MODULE + "\n")
    with pytest.raises(BadInput, match="changed while it was in use"):
        task.code.read()


def test_batches_hold_each_row_once_and_the_short_ones_first(tmp_path: Path) -> None:
    encoder = open_task(tmp_path).open_encoder(tmp_path, NAMES, {})
    inputs = ["[1,2,3]", "[1]", "[1,2]", "[]"]
    assert list(encoder.batches(inputs, 3)) == [([3, 1, 2], ["[]", "[1]", "[1,2]"]), ([0], ["[1,2,3]"])]


def judge_row(task: ModuleTask, folder: Path) -> None:
    """Call each function of a task on one row."""
    pair = task.read_row(ROW, None)
    assert pair is not None
    encoder = task.open_encoder(folder, NAMES, dict.fromkeys(AXES, 8))
    encoder.encode([pair[0]])
    answers = task.answers(OUTPUTS, [pair[0]], encoder)
    task.metrics[0].score(answers, [pair[1]], answers)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"next"])', '"nex"])', r"my_task.py, line 14: rows\(\) failed with KeyError \('nex'\)"),
        ('(row["series"], row["next"])', "7", r"rows\(\) returns int 7: return \(input, target\)"),
        ('(row["series"], row["next"])', "(row, float('nan'))", "a target that holds nan"),
        ('(row["series"], row["next"])', "(np, 1)", "an input that holds a module"),
        ("import numpy as np", "import numpyy as np", "line 5: running the file failed with ModuleNotFoundError"),
        ("import numpy as np", "import numpy as np; raise SystemExit(3)", r"line 5: .*SystemExit \(3\)"),
        ("def score", "def scores", "has no function score"),
        (
            '{"series": series, ',
            "{",
            "preprocess.. returns length: return a dict of the graph's inputs, series, length",
        ),
        ('{"series": series, ', '{"series": series * np.nan, ', "returns series NaN or infinite values .row 0."),
        ('{"series": series, ', '{"series": series[1:], ', "returns series with 0 along its first axis for 1 rows"),
        ('{"series": series, ', '{"series": [[1], [2, 3]], ', "series lists of different lengths"),
        ('{"series": series, ', '{"series": 1.5, ', "series with one number for 1 rows"),
        ('{"series": series, ', '{"series": ["a"], ', "series a list of str"),
        ("list(outputs[0])", "list(outputs[7])", r"line \d+: answers\(\) failed with IndexError"),
        ("list(outputs[0])", "outputs[0][0]", "returns a float32 for 1 rows"),
        ("list(outputs[0])", "[]", r"answers\(\) returns 0 for 1 rows"),
        ("list(outputs[0])", "[float('inf')]", r"answers\(\) returns for row 0 NaN or infinite"),
        ("[abs(float(answer) - target)", "[target * float('nan')", r"score\(\) returns NaN"),
        ("[abs(float(answer) - target)", "[(1, 2)", r"score\(\) returns \[1, 2\] for 1 rows, .* takes 1 a row"),
        ('"higher_is_better": False', '"aggregate": "share"', "other numbers than 0 and 1"),
    ],
)
def test_what_a_module_does_wrong_is_one_sentence(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in MODULE
    task = open_task(tmp_path, MODULE.replace(old, new))
    with pytest.raises(BadInput, match=message):
        judge_row(task, tmp_path)


def test_answers_of_different_ranks_are_refused(tmp_path: Path) -> None:
    task = open_task(tmp_path, MODULE.replace("list(outputs[0])", "[np.zeros(2), np.zeros((2, 2))]"))
    with pytest.raises(BadInput, match="float64 with 2 axes beside float64 with 1 axes"):
        task.answers(OUTPUTS, ["[]", "[]"], task.open_encoder(tmp_path, NAMES, {}))


def test_what_is_asked_and_shown_is_the_modules(tmp_path: Path) -> None:
    task = open_task(tmp_path)
    asked = "[[1, 2, 3]]"
    assert task.read_question(asked) == "[[1,2,3]]"
    assert task.read_question("a text") == '"a text"'
    (shown,) = task.show(OUTPUTS, [task.read_question(asked)], [asked], (), task.open_encoder(tmp_path, NAMES, {}))
    assert shown.line == "0.25  [[1, 2, 3]]"
    functions = (
        '\n\ndef question(text):\n    return [float(text)]\n\n\ndef show(answer):\n    return {"next": float(answer)}\n'
    )
    task = open_task(tmp_path, MODULE + functions)
    assert task.read_question("2") == "[2.0]"
    (shown,) = task.show(OUTPUTS, [task.read_question("2")], ["2"], (), task.open_encoder(tmp_path, NAMES, {}))
    assert shown.line == "next 0.25  2"


def test_bytes_and_arrays_of_rows_survive_as_text(tmp_path: Path) -> None:
    code = MODULE.replace('(row["series"], row["next"])', '({"image": b"\\x00\\xff", "at": np.arange(2)}, np.int64(3))')
    code = code.replace(
        "scale = float",
        'assert inputs == [{"image": b"\\x00\\xff", "at": [0, 1]}]; raise ValueError("same")\n    scale = float',
    )
    task = open_task(tmp_path, code)
    pair = task.read_row(ROW, None)
    assert pair is not None
    assert pair[1] == "3"
    with pytest.raises(BadInput, match=r"ValueError \(same\)"):
        task.open_encoder(tmp_path, NAMES, {}).encode([pair[0]])
