"""What is wrong with a file is said in our words, with an example: never in pydantic's, whatever stands in the file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from flows.inputs.fleet import Fleet
from flows.inputs.places import find_place, read_schema
from flows.inputs.problems import SENTENCES
from flows.inputs.recipe import Recipe
from flows.inputs.strict_yaml import Part, parse_yaml
from registry.errors import BadInput

# Every key there is: the sources exclude each other, which is found once each of them was accepted.
RECIPE: dict[str, Any] = yaml.safe_load(f"""
model: sst2
task: text-classification
source:
  {{hub: a/b, revision: main, package: p, version: "1", folder: f, sha256: {"a" * 64}, path: m, module: "a:b",
   processor: t, labels: [a, b], head: {{split: fit, seed: 0}}}}
data:
  {{path: rows, hub: a/b, revision: main, text: text, label: label, max_length: 64,
   calibration: {{split: a, samples: 8, holdout: 8, seed: 0, table: t}}, evaluation: {{split: b, samples: 8, seed: 0}}}}
precisions: [fp32, int8]
targets: [cpu]
profiles: [{{batch: {{min: 1, opt: 8, max: 32}}, sequence: {{min: 4, opt: 32, max: 64}}}}]
gates: {{loss_max: 0.01, latency_p99_ms_max: 20, speedup_min: 1, size_mb_max: 200}}
latency: {{windows: 10, iterations: 50, warmup: 10}}
workspace_mb: 1024
warmup_rows: 4
auto_promote: true
reproducible_builds: false
""")
FLEET: dict[str, Any] = yaml.safe_load("""
targets:
  l4: {backend: tensorrt, compute_capability: "8.9", gpu_name: L4, work_pool: l4, serving: "10.13",
       patience_seconds: 60, protected: true}
""")
FILES: tuple[tuple[type[Part], dict[str, Any]], ...] = ((Recipe, RECIPE), (Fleet, FLEET))
PROFILE = RECIPE["profiles"][0]
WRONG_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        "",
        "text",
        "FP32",
        0,
        -1,
        1.5,
        10**30,
        10**4299,
        float("nan"),
        float("inf"),
        [],
        ["x"],
        [[]],
        {},
        {"x": 1},
    ),
    *([PROFILE] * 9, {f"axis{number}": PROFILE["batch"] for number in range(9)}),
)
TOO_DEEP: list[Any] = []
for _ in range(250):
    TOO_DEEP = [TOO_DEEP]


def list_places(value: Any) -> Iterator[tuple[str | int, ...]]:
    yield ()
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, below in entries:
        yield from ((step, *place) for place in list_places(below))


def change(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    if not place:
        return value
    changed = document.copy()
    changed[place[0]] = change(document[place[0]], place[1:], value)
    return changed


def refuse(model: type[Part], document: Any, folder: Path) -> tuple[str, list[Any]]:
    """The message that refuses a document, and pydantic's errors behind it; "" and none where it is accepted."""
    path = folder / "a.yaml"
    path.write_text(document if isinstance(document, str) else yaml.dump(document, Dumper=Plain), encoding="utf-8")
    try:
        parse_yaml(model, path)
    except BadInput as error:
        cause = error.__cause__
        return str(error).removeprefix(f"{path}: "), cause.errors() if isinstance(cause, ValidationError) else []
    return "", []


class Plain(yaml.SafeDumper):
    """Without aliases, which a file may not have."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def list_bad_documents(complete: dict[str, Any]) -> Iterator[Any]:
    yield TOO_DEEP
    for place in list_places(complete):
        yield from (change(complete, place, value) for value in WRONG_VALUES)
        if place and isinstance(place[-1], str):
            yield change(complete, place[:-1], {"surprise": 1})


def test_no_error_that_a_file_can_cause_has_pydantics_words(tmp_path: Path) -> None:
    kinds = set()
    for model, complete in FILES:
        for document in list_bad_documents(complete):
            message, errors = refuse(model, document, tmp_path)
            assert message.isprintable()
            for error in errors:
                kinds.add(error["type"])
                if error["type"] != "value_error":  # a sentence of our own validators
                    assert error["msg"] not in message, message
            for words in ("Input should", "Field required", "Value error", "validation", "should have", "JSON", "None"):
                assert words not in message, message
    assert kinds - {"missing"} == set(SENTENCES)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precisions": "int8"}, "precisions: give a list, such as [fp32, int8], not the text 'int8'"),
        (
            {"profiles": [PROFILE | {"batch": 8}]},
            "profiles.0.batch: give min, opt and max, such as {min: 1, opt: 8, max: 32}, not the number 8",
        ),
        ({"precisions": ["fp32", "int9"]}, "precisions.1: there is no precision `int9`: did you mean int8?"),
        ({"precisions": ["FP32"]}, "precisions.0: there is no precision `FP32`: did you mean fp32?"),
        ({"data": None}, "data: give a mapping, such as {path: rows}, not an empty value"),
        ({"data": {"calibraton": {}}}, "data: there is no key `calibraton`: did you mean calibration?"),
        ({"calibration": {"samples": 8}}, "there is no key `calibration` here: it belongs in data"),
        (
            {"latency": {"zzz": 1}},
            "latency: there is no key `zzz`: choose from windows, iterations, warmup, seconds_max, sweep_seconds_max",
        ),
        ({"targets": []}, "targets: give a list, such as [cpu], not an empty list"),
        (
            {"source": {"labels": ["a"]}},
            "source.labels: give a list of at least 2 entries, such as [negative, positive], not 1",
        ),
        (
            {"workspace_mb": "2048"},
            "workspace_mb: give a whole number from 16 to 1,000,000, such as 1024, not the text '2048'",
        ),
        ({"gates": {"speedup_min": 0}}, "gates.speedup_min: give a number above 0, such as 1.0, not the number 0"),
        ({"auto_promote": "yes"}, "auto_promote: give true or false, such as false, not the text 'yes'"),
        ({"source": {"path": ""}}, "source.path: give a text, such as checkpoint, not an empty text"),
    ],
)
def test_a_wrong_value_is_refused_with_what_to_write(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    small = {key: RECIPE[key] for key in ("model", "precisions", "targets", "profiles")}
    good = {"source": {"path": "m"}, "data": {"path": "rows", "max_length": 64}}
    assert refuse(Recipe, small | good | changes, tmp_path)[0] == sentence


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ({"gpu": {"backend": "tensort"}}, "targets.gpu.backend: there is no backend `tensort`: did you mean tensorrt?"),
        (
            {"gpu": {"backend": "tensorrt", "compute_capability": 8.9}},
            "targets.gpu.compute_capability: give a compute capability in quotes, such as '8.9', not the number 8.9",
        ),
        ({"a": {}, "b": {}}, "targets.a and targets.b lack backend: add it, such as backend: onnxruntime"),
        ({"a": None}, "targets.a: give backend, such as {backend: onnxruntime}, not an empty value"),
    ],
)
def test_a_wrong_target_is_refused_with_what_to_write(targets: Any, sentence: str, tmp_path: Path) -> None:
    assert refuse(Fleet, {"targets": targets}, tmp_path)[0] == sentence


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            {"model": "sst2", "profiles": [PROFILE]},
            "the recipe lacks source, data, precisions and targets: add them, such as source: {path: checkpoint}, ",
        ),
        ("", "the recipe lacks model, source, data, precisions, targets and profiles: add them, such as model: "),
        ([1], "the recipe: give model, source, data, precisions, targets and profiles, not a list"),
        ("words", "the recipe: give model, source, data, precisions, targets and profiles, not the text 'words'"),
    ],
)
def test_what_a_recipe_lacks_is_named_at_once(document: Any, sentence: str, tmp_path: Path) -> None:
    assert refuse(Recipe, document, tmp_path)[0].startswith(sentence)


def test_missing_keys_are_named_however_much_else_is_wrong(tmp_path: Path) -> None:
    document = {"model": 1, "source": 1, "data": 1, "precisions": 1, "targets": 1, "gates": {"loss": 1}}
    message, _ = refuse(Recipe, document, tmp_path)
    assert message.startswith("the recipe lacks profiles: add it, such as profiles: [{batch: {min: 1, ")
    assert message.endswith("; and 3 more")


def test_the_examples_of_the_required_keys_make_a_recipe_and_a_fleet(tmp_path: Path) -> None:
    for model, _ in FILES:
        top = read_schema(model)
        document = {key: top.step(key).example for key in top.schema["required"]}
        assert refuse(model, document, tmp_path) == ("", [])


def test_every_place_of_a_file_has_an_example_that_is_accepted_there(tmp_path: Path) -> None:
    for model, complete in FILES:
        for place in filter(None, list_places(complete)):
            example = find_place(read_schema(model), place).example
            assert example is not None, place
            errors = refuse(model, change(complete, place, example), tmp_path)[1]
            # What does not fit together is refused once every part of it was accepted.
            assert {error["type"] for error in errors} <= {"value_error"}, place
