"""A recipe's mistakes are found before anything is built, all of them at once, and a good recipe is planned."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from flows.inputs.fleet import load_fleet
from flows.inputs.plan import why_not_here
from flows.inputs.recipe import load_recipe
from flows.release import check as check_module
from flows.release.check import RecipeCheck, check_recipe
from registry.errors import BadInput
from tasks.execution.progress import StepEnd
from tasks.execution.step_times import StepTimes
from tests.support.given_graphs import make_classifier, save_classifier
from tests.support.task_recipes import write_task_recipe
from tests.support.tiny_recipe import LABELS, RECIPE, TinyRecipe, write_split

Change = Callable[[TinyRecipe], None]
DATA: Any = RECIPE["data"]


def check(tiny: TinyRecipe, **changes: Any) -> RecipeCheck:
    tiny.recipe.write_text(yaml.safe_dump(RECIPE | changes), encoding="utf-8")
    recipe = load_recipe(tiny.recipe)
    return check_recipe(recipe, load_fleet(tiny.fleet), why_not_here, tiny.folder / "home")


def edit_config(**changes: Any) -> Change:
    def edit(tiny: TinyRecipe) -> None:
        file = tiny.folder / "checkpoint" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")

    return edit


def remove(path: str) -> Change:
    return lambda tiny: (tiny.folder / path).unlink()


def repeat_rows(tiny: TinyRecipe) -> None:
    shutil.copy(tiny.folder / "rows" / "evaluation.parquet", tiny.folder / "rows" / "calibration.parquet")


def test_a_good_recipe_has_no_problem_and_its_engines_and_steps_are_planned(tiny: TinyRecipe) -> None:
    result = check(tiny, targets=["cpu"])
    assert result.problems == ()
    (plan,) = result.plans
    assert [precision.value for precision in plan.precisions] == ["fp32", "int8-dynamic", "int8"]
    assert list(result.step_seconds) == [
        "source tiny",
        "calibration calibration",
        "export fp32",
        "quantize int8-dynamic",
        "quantize int8",
        "build cpu fp32",
        "build cpu int8-dynamic",
        "build cpu int8",
        "benchmark cpu",
        "evaluate onnx-graph fp32",
        "evaluate cpu fp32",
        "evaluate cpu int8-dynamic",
        "evaluate cpu int8",
        "publish tiny",
    ]
    result.require()


@pytest.mark.parametrize(
    ("golden", "found"),
    [
        ({}, "8 of evaluation travel with each bundle"),
        ({"samples": 0}, "none travel with each bundle"),
        ({"split": "calibration", "samples": 3}, "3 of calibration travel with each bundle"),
    ],
)
def test_a_check_says_which_rows_travel(golden: dict[str, Any], found: str, tiny: TinyRecipe) -> None:
    result = check(tiny, data={**DATA, "golden": golden})
    assert [each.found for each in result.checks if each.what == "golden inputs"] == [found]


def test_a_split_of_golden_inputs_that_is_not_there_is_a_problem(tiny: TinyRecipe) -> None:
    (problem,) = check(tiny, data={**DATA, "golden": {"split": "made-up"}}).problems
    assert "made-up" in problem


def test_nothing_is_written_by_a_check(tiny: TinyRecipe) -> None:
    before = sorted(tiny.folder.rglob("*"))
    check(tiny)
    assert sorted(tiny.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("checkpoint/model.safetensors"), "no weights"),
        (remove("checkpoint/tokenizer.json"), "has no tokenizer.json"),
        (edit_config(architectures=["BertModel"]), "BertModel, which has no head"),
        (edit_config(max_position_embeddings=8), "texts of 16 tokens, the checkpoint has positions for 8"),
        (edit_config(id2label={"0": "cat", "1": "dog"}), "not among the classes of tiny"),
        (edit_config(auto_map={}), "auto_map"),
        (remove("rows/evaluation.parquet"), "no split 'evaluation'"),
        (remove("rows/calibration.parquet"), "no split 'calibration'"),
        (repeat_rows, "also stand in"),
    ],
    ids=["weights", "tokenizer", "head", "positions", "labels", "code", "evaluation", "calibration", "overlap"],
)
def test_what_a_release_would_fail_on_is_found_without_building(spoil: Change, words: str, tiny: TinyRecipe) -> None:
    spoil(tiny)
    result = check(tiny)
    assert any(words in problem for problem in result.problems), result.problems
    with pytest.raises(BadInput, match=words):
        result.require()


def give_graph(tiny: TinyRecipe, file: str = "net.onnx", **options: Any) -> dict[str, Any]:
    save_classifier(tiny.folder / file, make_classifier(**options))
    return {"onnx": file, "processor": "checkpoint", "labels": list(LABELS)}


def test_a_given_graph_is_described(tiny: TinyRecipe) -> None:
    result = check(tiny, source=give_graph(tiny, opset=18))
    assert result.problems == ()
    (source,) = (each.found for each in result.checks if each.what == "source")
    shape = "int64[batch_size, sequence_length]"
    assert source.startswith(f"net.onnx: opset 18, inputs input_ids {shape}, attention_mask {shape}, outputs logits ")
    assert source.endswith(" MB of weights")


def test_what_is_wrong_with_a_given_graph_is_told_with_the_other_mistakes(tiny: TinyRecipe) -> None:
    repeat_rows(tiny)
    problems = check(tiny, source=give_graph(tiny, axes=("batch", 64))).problems
    assert len(problems) == 2
    assert "net.onnx: input input_ids has its sequence axis fixed at 64" in problems[0]
    assert "also stand in" in problems[1]


def test_several_mistakes_are_told_together(tiny: TinyRecipe) -> None:
    shutil.rmtree(tiny.folder / "checkpoint")
    remove("rows/evaluation.parquet")(tiny)
    problems = "; ".join(check(tiny, targets=["nobody"]).problems)
    for words in ("no target 'nobody'", "checkpoint is not a folder", "no split 'evaluation'"):
        assert words in problems


def test_relative_positions_have_no_end(tiny: TinyRecipe) -> None:
    edit_config(max_position_embeddings=8, relative_attention=True)(tiny)
    assert check(tiny).problems == ()


def test_the_positions_of_roberta_begin_behind_its_padding(tiny: TinyRecipe) -> None:
    edit_config(model_type="roberta", max_position_embeddings=17, pad_token_id=1)(tiny)
    assert "positions for 15" in check(tiny).problems[0]
    edit_config(max_position_embeddings=18)(tiny)
    assert check(tiny).problems == ()


def test_too_few_rows_to_prove_int8_are_a_note_and_no_problem(tiny: TinyRecipe) -> None:
    result = check(tiny, gates={"loss_max": 0.01})
    assert result.problems == ()
    assert any("8 further rows can be held out" in warning for warning in result.warnings)


def test_a_full_disk_and_memory_are_told_before_they_stop_a_release(
    tiny: TinyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_free(30 * 10**6, monkeypatch)
    monkeypatch.setattr(check_module, "_read_free_memory", lambda: 10**8)
    # The release would keep it once for each graph, and twice for each engine.
    weights = tiny.folder / "checkpoint" / "model.safetensors"
    more = {"more": np.zeros(5 * 10**6, np.uint8)}
    save_file(load_file(weights) | more, weights, metadata={"format": "pt"})
    result = check(tiny)
    assert result.problems == ()
    assert [warning.split(":")[0] for warning in result.warnings if "needed" in warning] == ["disk", "memory"]


def test_a_disk_that_cannot_hold_the_least_of_a_release_is_a_problem(
    tiny: TinyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_free(6 * 10**6, monkeypatch)
    (problem,) = check(tiny).problems
    assert "has 6 MB free, a release needs 16 MB at least" in problem


def leave_free(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - size, size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_the_time_is_that_of_this_machine_once_it_is_known(tiny: TinyRecipe) -> None:
    assert check(tiny).timed_steps == 0
    times = StepTimes(tiny.folder / "home" / "stages", "tiny")
    times.record(StepEnd("export fp32", 123.0, found=False))
    result = check(tiny)
    assert (result.timed_steps, result.step_seconds["export fp32"]) == (1, 123.0)


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRecipe:
    shapes = write_task_recipe(tmp_path / "shapes", "image-classification")
    monkeypatch.chdir(shapes.folder)
    return shapes


def set_processor(**changes: Any) -> Change:
    def edit(shapes: TinyRecipe) -> None:
        file = shapes.folder / "checkpoint" / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")

    return edit


def write_texts(shapes: TinyRecipe) -> None:
    for split in ("evaluation", "calibration"):
        write_split(shapes.folder / "rows", split, [f"text {split} {row}" for row in range(60)])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("checkpoint/preprocessor_config.json"), "has no preprocessor_config.json: save the checkpoint with"),
        (edit_config(architectures=["ConvNextModel"]), "ConvNextModel, which has no head for image-classification"),
        (edit_config(num_channels=1), "takes images of 1 channels"),
        (set_processor(image_processor_type="BeitImageProcessor"), "the image processor has the type 'Beit'"),
        (set_processor(auto_map={"AutoImageProcessor": "a--b.C"}), "auto_map"),
        (write_texts, "has no column image: it has text, label"),
    ],
    ids=["processor", "head", "channels", "steps", "code", "column"],
)
def test_what_an_image_release_would_fail_on_is_one_sentence(spoil: Change, words: str, shapes: TinyRecipe) -> None:
    recipe, fleet = load_recipe(shapes.recipe), load_fleet(shapes.fleet)
    assert check_recipe(recipe, fleet, why_not_here, shapes.folder / "home").problems == ()
    spoil(shapes)
    problems = check_recipe(recipe, fleet, why_not_here, shapes.folder / "home").problems
    assert any(words in problem for problem in problems), problems
    assert not any("\n" in problem for problem in problems)


def test_rows_that_are_on_a_hub_are_not_needed_to_try_an_image_processor(shapes: TinyRecipe) -> None:
    content = yaml.safe_load(shapes.recipe.read_text(encoding="utf-8"))
    content["data"] = {"hub": "team/shapes", "revision": "main"}
    shapes.recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    result = check_recipe(load_recipe(shapes.recipe), load_fleet(shapes.fleet), why_not_here, shapes.folder / "home")
    assert result.problems == ()


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"model_type": "eurobert"}, "transformers 4 has no model type eurobert"),
        ({"rope_parameters": {"rope_theta": 20.0}}, "it was saved by transformers 5 (rope_parameters)"),
    ],
)
def test_a_checkpoint_for_transformers_5_is_told_with_what_a_release_installs(
    entries: dict[str, Any], reason: str, tiny: TinyRecipe
) -> None:
    edit_config(**entries)(tiny)
    result = check(tiny, targets=["cpu"])
    assert result.problems == ()
    (found,) = [each.found for each in result.checks if each.what == "export"]
    assert f"since {reason}; the tool transformers5 is installed first, which needs a package index once" in found


def test_a_checkpoint_for_optimum_needs_no_word(tiny: TinyRecipe) -> None:
    assert "export" not in {each.what for each in check(tiny, targets=["cpu"]).checks}
