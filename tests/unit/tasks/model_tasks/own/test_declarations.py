"""The constants of a task module: read without running it, each wrong one named."""

import pytest

from registry.errors import BadInput
from tasks.model_tasks.own.declarations import read_declarations
from tests.support.own_tasks import MODULE

METRIC = 'METRIC = {"name": "error", "unit": "points"}\n'


def test_constants_are_read_without_running_the_file() -> None:
    declared = read_declarations(b"raise SystemExit(1)\n" + MODULE.encode(), "my_task.py")
    assert declared.columns == ("series", "next")
    assert (declared.metric.name, declared.metric.aggregate) == ("absolute_error", "mean")
    assert not declared.metric.higher_is_better
    assert (declared.files, declared.outputs) == (("scale.txt",), 2)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (METRIC, "my_task.py declares no COLUMNS"),
        ('COLUMNS = ("x",)', "my_task.py declares no METRIC"),
        (METRIC + 'COLUMNS = tuple("x")', "line 2: COLUMNS is no literal"),
        (METRIC + 'COLUMNS = ("x", "x")', "give a tuple of names of columns, each once"),
        (METRIC + 'COLUMNS: tuple[str, ...] = "x"', "COLUMNS is 'x': give a tuple"),
        (METRIC + 'COLUMNS = ("x"', r"line 2: .*: name a Python file"),
        (METRIC + 'COLUMNS = ("x",)\nOUTPUTS = True', "OUTPUTS is True"),
        (METRIC + 'COLUMNS = ("x",)\nFILES = ("../x",)', r"FILES has '\.\./x'"),
        (METRIC + 'COLUMNS = ("x",)\nFILES = ("engine.onnx",)', "FILES has 'engine.onnx'"),
        ('COLUMNS = ("x",)\nMETRIC = {"name": "a", "units": "b"}', "METRIC has no key 'units'"),
        ('COLUMNS = ("x",)\nMETRIC = {"name": "latency_p50_ms", "unit": "b"}', "name is 'latency_p50_ms'"),
        ('COLUMNS = ("x",)\nMETRIC = {"name": "a", "unit": ""}', "unit is ''"),
        ('COLUMNS = ("x",)\nMETRIC = {"name": "a", "unit": "b", "higher_is_better": 1}', "higher_is_better is 1"),
        ('COLUMNS = ("x",)\nMETRIC = {"name": "a", "unit": "b", "aggregate": "sum"}', "choose from mean, root-mean"),
    ],
)
def test_a_wrong_constant_is_named(code: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        read_declarations(code.encode(), "my_task.py")
