"""Recipes and fleets: what is shipped parses; everything else is refused in one line that says where."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.inputs.fleet import load_fleet
from flows.inputs.recipe import load_recipe
from flows.inputs.strict_yaml import LARGEST_FILE
from registry.errors import BadInput
from registry.records import AxisRange, Backend, Precision
from tasks.model_tasks import MODEL_TASKS, ModelTask
from tests.support.own_tasks import write_module

RECIPES = Path(__file__).parents[4] / "recipes"
SHA = "a" * 64
ONE = {"min": 1, "opt": 1, "max": 1}
OWN = {"task": "module", "module": "my_task.py", "source": {"onnx": "net.onnx"}, "profiles": [{"batch": ONE}]}
ONNX = {"onnx": "m.onnx", "processor": "t", "labels": ["a", "b"]}

AXES = {"batch": 32, "sequence": 64, "new_tokens": 16}
WRITING = {
    "task": "text2text-generation",
    # Not one mapping for all: YAML would name it, and refer to the name.
    "profiles": [{axis: {"min": 1, "opt": 8, "max": most} for axis, most in AXES.items()}],
}


def recipe(**changes: Any) -> dict[str, Any]:
    """A recipe that parses; keys of `changes` are paths joined with `__`, and replace what is there."""
    document: dict[str, Any] = {
        "model": "sst2",
        "source": {"path": "model"},
        "data": {"path": "rows", "max_length": 64},
        "precisions": ["fp32", "int8"],
        "targets": ["cpu"],
        "profiles": [
            {"batch": {"min": 1, "opt": 8, "max": 32}, "sequence": {"min": 4, "opt": 32, "max": 64}},
        ],
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        place: Any = document
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place.setdefault(parent, {})
        place[last] = value
    return document


def write(folder: Path, content: dict[str, Any] | bytes) -> Path:
    path = folder / "the-recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    return path


def refusal(path: Path, *, fleet: bool = False) -> str:
    """The message with which a file is refused: exactly BadInput, one printable line, naming the file."""
    with pytest.raises(BadInput) as caught:
        (load_fleet if fleet else load_recipe)(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.isprintable()
    assert str(path) in message
    return message.replace(str(path), "")


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_parses(path: Path) -> None:
    if path.stem == "fleet":
        assert load_fleet(path).target("cpu").backend is Backend.ONNXRUNTIME
    else:
        assert Precision.FP32 in load_recipe(path).precisions


def test_every_shipped_recipe_names_targets_of_the_shipped_fleet() -> None:
    fleet = load_fleet(RECIPES / "fleet.yaml")
    for path in RECIPES.rglob("*.yaml"):
        if path.stem != "fleet":
            assert [fleet.target(name).name for name in load_recipe(path).targets]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 8),
        ({"data__golden__samples": 0}, 0),
        ({"data__golden__samples": 3}, 3),
        ({"warmup_rows": 0}, 0),  # no row may leave
        ({"warmup_rows": 0, "data__golden__split": "made-up"}, 8),
    ],
)
def test_golden_inputs_can_be_turned_off_and_named(changes: dict[str, Any], expected: int, tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, recipe(**changes))).golden_samples == expected


def test_a_small_recipe_gets_its_defaults(tmp_path: Path) -> None:
    parsed = load_recipe(write(tmp_path, recipe()))
    assert parsed.precisions == (Precision.FP32, Precision.INT8)
    assert parsed.gates.loss_max == 0.01
    assert parsed.gates.speedup_min is None
    assert parsed.profiles[0].shape_profile.axis("batch") == AxisRange(1, 8, 32)


@pytest.mark.parametrize(
    "key",
    ["colour", "source__colour", "source__head__colour", "data__colour", "data__calibration__colour", "gates__colour",
     "latency__colour", "profiles__0__batch__colour"],
)  # fmt: skip
def test_an_unknown_key_is_refused_at_every_depth(tmp_path: Path, key: str) -> None:
    *parents, last = key.split("__")
    inside = f"{'.'.join(parents)}: " if parents else ""
    assert f": {inside}there is no key `{last}`" in refusal(write(tmp_path, recipe(**{key: 1})))


@pytest.mark.parametrize(
    ("task", "hint"),
    [
        ("text-clasification", "did you mean text-classification?"),
        ("depth-estimation", "use text-classification"),
        ("x" * 5000, "use text-classification"),
    ],
)
def test_an_unknown_task_is_refused_with_the_nearest_name(tmp_path: Path, task: str, hint: str) -> None:
    message = refusal(write(tmp_path, recipe(task=task)))
    assert "task: " in message
    assert hint in message
    assert len(message) < 700


@pytest.mark.parametrize("task", MODEL_TASKS.values(), ids=MODEL_TASKS)
def test_every_column_of_a_task_can_be_named(tmp_path: Path, task: ModelTask) -> None:
    columns = (*task.optional_columns, *task.columns)
    axes = {axis: {"min": 4, "opt": 8, "max": 32} for axis in task.axes}
    data = {"path": "rows", "max_length": 32} | {name: f"my {name}" for name in columns}
    document = recipe(task=task.name, profiles=[axes], data=data)
    assert load_recipe(write(tmp_path, document)).dataset.columns == tuple((name, f"my {name}") for name in columns)


@pytest.mark.parametrize("axes", [("batch",), ("sequence",), ("batch", "sequence", "height"), ("batch", "length")])
def test_a_profile_names_the_axes_of_its_task(tmp_path: Path, axes: tuple[str, ...]) -> None:
    profile = {axis: {"min": 1, "opt": 8, "max": 128} for axis in axes}
    message = refusal(write(tmp_path, recipe() | {"profiles": [profile]}))
    assert (
        f"has the axes batch, sequence, each with min, opt and max; this one has {', '.join(sorted(axes))}" in message
    )


@pytest.mark.parametrize("key", ["two\nlines", "a\x1b[2Jb", "k" * 5000, "a\u2028b"])
def test_a_hostile_key_is_quoted_and_cut(tmp_path: Path, key: str) -> None:
    message = refusal(write(tmp_path, recipe(**{key: 1})))
    assert "there is no key `" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workspace_mb", "1024"),
        ("workspace_mb", True),
        ("workspace_mb", 1024.0),
        ("workspace_mb", None),
        ("latency__windows", True),
        ("latency__iterations", "50"),
        ("data__max_length", True),
        ("data__calibration__samples", "256"),
        ("data__calibration__seed", 1.5),
        ("data__text", 7),
        ("gates__loss_max", "0.01"),
        ("gates__loss_max", True),
        ("gates__speedup_min", False),
        ("model", 7),
        ("model", ["sst2"]),
        ("targets", "cpu"),
        ("precisions", {"fp32": 1}),
        ("profiles", {}),
        ("profiles__0__batch__min", True),
        ("profiles__0__batch__min", "1"),
        ("source", "model"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_and_not_converted(tmp_path: Path, key: str, value: object) -> None:
    assert f": {key.replace('__', '.')}: " in refusal(write(tmp_path, recipe(**{key: value})))


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999", "-1"])
@pytest.mark.parametrize("gate", ["loss_max", "latency_p99_ms_max", "speedup_min", "size_mb_max"])
def test_a_limit_that_no_figure_could_meet_or_miss_is_refused(tmp_path: Path, gate: str, value: str) -> None:
    text = yaml.safe_dump(recipe()) + f"gates: {{{gate}: {value}}}\n"
    assert f"gates.{gate}: " in refusal(write(tmp_path, text.encode()))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gates__loss_max", 1.01),
        ("gates__latency_p99_ms_max", 0),
        ("workspace_mb", 15),
        ("workspace_mb", 10**30),
        ("data__max_length", 3),
        ("data__calibration__samples", 0),
        ("data__calibration__seed", -1),
        ("data__evaluation__seed", 2**53 + 1),
        ("source__head__seed", -1),
        ("latency__windows", 3),
        ("latency__warmup", 0),
        ("profiles__0__batch__min", 0),
        ("precisions", []),
        ("targets", []),
        ("profiles", []),
        ("precisions", ["fp32", "fp12"]),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, key: str, value: object) -> None:
    assert f": {key.replace('__', '.')}" in refusal(write(tmp_path, recipe(**{key: value})))


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "..",
        "a/b",
        "a..b",
        "a\nb",
        "sst2\n",
        "a@b",
        "x" * 300,
        "x" * 64,
        "SST2",
        "",
        " ",
        "a b",
        "-a",
        "a-",
        "é",
    ],
)
@pytest.mark.parametrize("key", ["model", "targets"])
def test_an_unsafe_name_is_refused(tmp_path: Path, key: str, name: str) -> None:
    message = refusal(write(tmp_path, recipe(**{key: name if key == "model" else ["cpu", name]})))
    assert f": {key}" in message
    assert "not a valid name" in message
    assert len(message) < 400


@pytest.mark.parametrize(("low", "opt", "high"), [(9, 8, 32), (1, 33, 32), (32, 8, 1), (1, 8, 7)])
@pytest.mark.parametrize("axis", ["batch", "sequence"])
def test_min_opt_max_out_of_order_are_refused(tmp_path: Path, axis: str, low: int, opt: int, high: int) -> None:
    changes = {f"profiles__0__{axis}": {"min": low, "opt": opt, "max": high}}
    message = refusal(write(tmp_path, recipe(**changes)))
    assert f": profiles.0.{axis}: min {low}, opt {opt}, max {high} are out of order" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precisions": ["int8"]}, "precisions must hold fp32"),
        ({"precisions": ["fp32", "int8", "int8"]}, "precisions names one of its entries twice"),
        ({"targets": ["cpu", "cpu"]}, "targets names one of its entries twice"),
        ({"data__max_length": 63}, "max_length must be the largest sequence max"),
        ({"task": "image-classification"}, "a profile of image-classification has the axes batch, each with min"),
        ({"task": "image-classification", "data__image": "img", "data__text": "a"}, "reads no data.text: its columns"),
        (
            {"task": "image-classification", "source": {"path": "m", "head": {}}},
            "image-classification takes no source.head: that is for text-classification",
        ),
        (
            {
                "task": "audio-classification",
                "source": {"onnx": "m.onnx", "processor": "m", "labels": ["a", "b"]},
                "profiles": [{axis: {"min": 1, "opt": 1, "max": 1} for axis in ("batch", "samples")}],
            },
            "audio-classification takes no source.module or source.onnx: name a checkpoint",
        ),
        ({**WRITING, "source": ONNX}, "text2text-generation takes no source.module or source.onnx: name a checkpoint"),
        ({**WRITING, "source": {"path": "m", "head": {}}}, "text2text-generation takes no source.head"),
        (
            {"task": "question-answering", "source": {"path": "m", "head": {}}},
            "question-answering takes no source.head: that is for text-classification",
        ),
        ({**WRITING, "data__calibration__table": "t.json"}, "takes no data.calibration.table: its engines have"),
        ({**WRITING, "reproducible_builds": True}, "takes no reproducible_builds: its engines have several graphs"),
        ({"task": "text2text-generation"}, "has the axes batch, sequence, new_tokens, each with min"),
        ({"source": {}}, "source: give exactly one of hub, package, path"),
        ({"source": {"path": "m", "hub": "a/b", "revision": "main"}}, "source: give exactly one of"),
        ({"source": {"hub": "a/b"}}, "source: a hub model needs a revision"),
        ({"source": {"hub": ""}}, "source.hub: "),
        ({"source": {"path": ""}}, "source.path: "),
        ({"source": {"hub": "a/b", "revision": ""}}, "source.revision: "),
        ({"source": {"package": "p", "version": "1", "sha256": SHA}}, "source: a package needs version, folder and"),
        ({"source": {"package": "p", "version": "1", "folder": "m"}}, "source: a package needs version, folder and"),
        ({"source": {"package": "p", "version": "1", "folder": "m", "sha256": SHA[1:]}}, "source.sha256: "),
        ({"source": {"package": "p", "version": "1", "folder": "m", "sha256": SHA + "\n"}}, "source.sha256: "),
        ({"source": {"path": "m", "onnx": "m.onnx"}}, "source: give exactly one of hub, package, path, module, onnx"),
        ({"source": {"path": "m", "labels": ["a", "b"]}}, "source: processor and labels go with a module or an onnx"),
        ({"source": {"onnx": "m.onnx", "labels": ["a", "b"]}}, "source: a module or an onnx graph needs processor"),
        ({"source": {"onnx": "m.onnx", "processor": "t"}}, "tells classes apart: name them in source.labels"),
        ({"source": {"module": "m:f", "processor": "t"}}, "tells classes apart: name them in source.labels"),
        ({"task": "feature-extraction", "source": ONNX}, "tells no classes apart: remove source.labels"),
        ({"task": "module"}, "`task: module` and `module: FILE`, the Python file of a task, go together"),
        ({"module": "my_task.py"}, "`task: module` and `module: FILE`, the Python file of a task, go together"),
        ({"module_sha256": SHA}, "module_sha256 goes with `module: FILE`"),
        ({**OWN, "source": {"path": "m"}}, "takes source.onnx or source.module: name the checkpoint's graph there"),
        ({**OWN, "source": ONNX}, "task: module takes no source.processor: what it needs stands in its file"),
        ({**OWN, "data__text": "sentence"}, "takes no data.text: COLUMNS in its file name the columns"),
        ({**OWN, "profiles": [{"time": ONE}]}, "each profile of task: module has the axis batch"),
        ({**OWN, "profiles": [{"batch": ONE}, {"batch": dict(ONE), "time": dict(ONE)}]}, "all have the same axes; "),
        ({"task": "modul"}, "there is no task 'modul': did you mean module?"),
        ({"data": {}}, "data: give exactly one of path, hub"),
        ({"data": {"path": "p", "hub": "h", "revision": "r"}}, "data: give exactly one of path, hub"),
        ({"data": {"hub": "h"}}, "data: a hub dataset needs a revision"),
        ({"data": {"hub": ""}}, "data.hub: "),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(write(tmp_path, recipe(**changes)))


def test_a_package_of_pinned_weights_is_an_origin(tmp_path: Path) -> None:
    source = {"package": "p", "version": "1", "folder": "m", "sha256": SHA, "head": {}}
    assert load_recipe(write(tmp_path, recipe(source=source))).source.head is not None


def test_an_own_task_is_read_from_its_file_and_not_before(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, recipe(**OWN | {"module": str(tmp_path / "my_task.py")})))
    with pytest.raises(BadInput, match=r"module: .*my_task.py cannot be read \(No such file or directory\)"):
        _ = loaded.model_task
    write_module(tmp_path)
    assert loaded.dataset.columns == (("series", "series"), ("next", "next"))
    assert [*loaded.processor.list_files()] == ["scale.txt", "task_module.py"]


@pytest.mark.parametrize("key", ["model", "source", "data", "precisions", "targets", "profiles"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    document = recipe()
    del document[key]
    assert f": the recipe lacks {key}: add it, such as {key}: " in refusal(write(tmp_path, document))


def test_many_problems_are_counted_not_listed(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, recipe(a=1, b=1, c=1, d=1, e=1)))
    assert "there is no key `a`" in message
    assert message.endswith("and 2 more")


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    start = time.perf_counter()
    assert "aliases are not allowed (line 2)" in refusal(write(tmp_path, "\n".join(lines).encode()))
    assert time.perf_counter() - start < 1


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    text = yaml.safe_dump(recipe()) + "gates: {speedup_min: 1.0, speedup_min: 2.0}\n"
    assert "key 'speedup_min' is given twice" in refusal(write(tmp_path, text.encode()))
    text = yaml.safe_dump(recipe()) + "1: a\n'1': b\n"
    assert "key '1' is given twice" in refusal(write(tmp_path, text.encode()))
    text = yaml.safe_dump(recipe()) + "model: other\n"
    assert "key 'model' is given twice" in refusal(write(tmp_path, text.encode()))


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    with path.open("r+b") as file:
        file.truncate(2**40)  # sparse
    assert "larger than 64 KB" in refusal(path)
    assert "larger than 64 KB" in refusal(Path("/dev/zero"))


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    text = yaml.safe_dump(recipe()).encode()
    assert load_recipe(write(tmp_path, text + b"#" * (LARGEST_FILE - len(text)))).model == "sst2"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.yaml")
    assert "Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"just words", b"[1, 2]", b"{", b"a: b: c", b"\xff\xfe\x00", b"\0", b"a: !!python/object:os.system {}",
        b"[" * 20_000, b"[" * 300 + b"]" * 300, b"9" * 5000, b"0x" + b"f" * 5000, b"!!bool x",
        b"!!int ''", b"!!float _",
        b"!!timestamp x", b"!!map x", b"2001-01-01", b"2001-99-99", b"!!set {a}", b"!!binary aGk=", b"[1]: 2",
        b"1:" * 300 + b"1.5", b'"\\ud800"', b"--- a\n--- b", b"<<: {a: 1}", b"%YAML 9.9\n---\na", b"2001-01-01: 1",
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_what_is_no_mapping_of_plain_values_is_refused(tmp_path: Path, content: bytes) -> None:
    refusal(write(tmp_path, content))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=200)
    | st.text(alphabet="!&*:{}[]-?|>%@'\"\\ \n\tabn019._ex", max_size=80).map(str.encode)
)
def test_arbitrary_bytes_raise_nothing_but_bad_input(tmp_path: Path, content: bytes) -> None:
    refusal(write(tmp_path, content))
    refusal(write(tmp_path, content), fleet=True)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["model", "source", "data", "precisions", "profiles", "gates", "latency", "workspace_mb"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_an_arbitrary_value_is_accepted_or_refused_in_one_line(tmp_path: Path, key: str, value: object) -> None:
    path = write(tmp_path, recipe(**{key: value}))
    try:
        load_recipe(path)
    except BadInput:
        refusal(path)


def fleet(**changes: Any) -> dict[str, Any]:
    return {"targets": {"l4": {"backend": "tensorrt", "compute_capability": "8.9"} | changes}}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "the fleet file lacks targets: add it"),
        ({"targets": {}}, "targets: "),
        (fleet(colour=1), "targets.l4: there is no key `colour`"),
        (fleet(backend="cuda"), "targets.l4.backend: "),
        (fleet(compute_capability=8.9), "targets.l4.compute_capability: "),
        (fleet(compute_capability="8.9\n"), "targets.l4.compute_capability: "),
        (fleet(compute_capability="٨.٩"), "targets.l4.compute_capability: "),
        (fleet(compute_capability=None), "targets.l4: a TensorRT target needs a compute_capability"),
        (fleet(backend="onnxruntime"), "a target of ONNX Runtime has none"),
        (fleet(work_pool="../x"), "targets.l4.work_pool: name '../x' is not a valid name"),
        ({"targets": {"../x": {"backend": "onnxruntime"}}}, "name '../x' is not a valid name"),
    ],
)
def test_a_fleet_that_names_no_real_target_is_refused(tmp_path: Path, document: dict[str, Any], words: str) -> None:
    assert words in refusal(write(tmp_path, document), fleet=True)


def test_a_target_that_the_fleet_lacks_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no target 't4': choose from l4"):
        load_fleet(write(tmp_path, fleet())).target("t4")
