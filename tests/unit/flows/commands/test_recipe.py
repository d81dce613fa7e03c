"""`enginery init` writes a recipe that a check accepts, and `enginery check` tells all that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.inputs.recipe import load_recipe
from tests.support.audio import save_spectrogram_listener
from tests.support.commands import Enginery
from tests.support.hub_server import serve_hub
from tests.support.task_recipes import TASKS, write_task_recipe
from tests.support.tiny import tiny_bert
from tests.support.tiny_recipe import TinyRecipe, convert_splits, write_split


def test_a_recipe_is_written_for_a_folder_and_passes_its_check(tiny: TinyRecipe, enginery: Enginery) -> None:
    ran = enginery("init", "checkpoint", "--data", "rows", "--fleet", "fleet.yaml")
    assert ran.code == 0, ran.err
    assert "wrote checkpoint.yaml" in ran.out
    assert ran.out.splitlines()[-1].endswith("Next: enginery release checkpoint.yaml")
    checked = enginery("check", "checkpoint.yaml", "--fleet", "fleet.yaml", "--json").json
    assert checked["problems"] == []
    assert [target["target"] for target in checked["targets"]] == ["cpu"]
    text = (tiny.folder / "checkpoint.yaml").read_text(encoding="utf-8")
    for line in ("path: checkpoint", "path: rows", "max_length: 16 ", "loss_max: 0.05 "):
        assert line in text


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "saved"])
def test_init_finds_splits_in_every_form_and_their_recipe_passes_its_check(
    form: str, tiny: TinyRecipe, enginery: Enginery
) -> None:
    convert_splits(tiny.folder / "rows", form)
    ran = enginery("init", "checkpoint", "--data", "rows", "--fleet", "fleet.yaml")
    assert ran.code == 0, ran.err
    assert "text: text\n  label: label\n" in Path("checkpoint.yaml").read_text(encoding="utf-8")
    assert enginery("check", "checkpoint.yaml", "--fleet", "fleet.yaml", "--json").json["problems"] == []


def test_init_refuses_a_split_in_two_forms(tiny: TinyRecipe, enginery: Enginery) -> None:
    Path("rows/evaluation.csv").write_text("text,label\ngood,1\n", encoding="utf-8")
    ran = enginery("init", "checkpoint", "--data", "rows", "--fleet", "fleet.yaml")
    assert ran.code == 2
    assert "twice, as evaluation.csv and evaluation.parquet: keep one of them" in ran.err


def test_a_file_that_exists_is_never_overwritten(tiny: TinyRecipe, enginery: Enginery) -> None:
    (tiny.folder / "mine.yaml").write_text("mine", encoding="utf-8")
    ran = enginery("init", "checkpoint", "--data", "rows", "--name", "mine", "--fleet", "fleet.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "mine.yaml exists already" in ran.err
    assert (tiny.folder / "mine.yaml").read_text(encoding="utf-8") == "mine"


def test_a_recipe_is_written_for_a_model_of_the_hub_from_its_small_files(
    tiny: TinyRecipe, enginery: Enginery, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_hub() as hub:
        hub.commit("team/Tiny_Model", {file.name: file.read_bytes() for file in Path("checkpoint").iterdir()})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        ran = enginery("init", "team/Tiny_Model", "--data", "rows", "--fleet", "fleet.yaml")
        assert ran.code == 0, ran.err
        assert not any("safetensors" in request for request in hub.requests)
    text = Path("tiny-model.yaml").read_text(encoding="utf-8")
    assert "hub: team/Tiny_Model\n  revision: main" in text


def test_an_encoder_without_a_head_gets_one_fitted(tiny: TinyRecipe, enginery: Enginery) -> None:
    tiny_bert(tiny.folder / "encoder", ())
    write_split(tiny.folder / "rows", "fit", ["good film", "bad film"] * 10)
    ran = enginery("init", "encoder", "--data", "rows", "--fleet", "fleet.yaml")
    assert ran.code == 0, ran.err
    assert "head: {split: fit}" in Path("encoder.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_task_is_found_by_the_checkpoint_and_the_columns(
    task: str, tmp_path: Path, enginery: Enginery, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = write_task_recipe(tmp_path / "of-a-task", task)
    monkeypatch.chdir(tiny.folder)
    ran = enginery("init", "checkpoint", "--data", "rows", "--name", "mine", "--fleet", "fleet.yaml")
    assert ran.code == 0, ran.err
    assert load_recipe(Path("mine.yaml")).task == task


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "--data", "rows"), "nowhere is no folder, and no id of the hub"),
        (("checkpoint", "--data", "nowhere"), "name the dataset"),
        (("rows", "--data", "rows"), "no config.json"),
        (("checkpoint", "--data", "checkpoint"), "needs a split to calibrate on"),
    ],
    ids=["checkpoint", "data", "no checkpoint", "no data"],
)
def test_what_is_no_checkpoint_or_dataset_is_one_sentence_and_writes_nothing(
    arguments: tuple[str, ...], words: str, tiny: TinyRecipe, enginery: Enginery
) -> None:
    before = sorted(Path().iterdir())
    ran = enginery("init", *arguments, "--fleet", "fleet.yaml")
    assert ran.code == 2
    assert words in ran.err
    assert len(ran.err.splitlines()) == 1
    assert sorted(Path().iterdir()) == before


def test_columns_are_found_by_their_names_or_their_texts(tiny: TinyRecipe, enginery: Enginery) -> None:
    import datasets

    for split in ("calibration", "evaluation"):
        file = str(tiny.folder / "rows" / f"{split}.parquet")
        rows = datasets.Dataset.from_parquet(file, keep_in_memory=True)
        names = rows.rename_columns({"text": "words", "label": "Category"}).add_column("id", ["x"] * len(rows))
        names.to_parquet(file)
    assert enginery("init", "checkpoint", "--data", "rows", "--fleet", "fleet.yaml").code == 0
    text = Path("checkpoint.yaml").read_text(encoding="utf-8")
    assert "text: words\n  label: Category\n" in text


def test_a_check_tells_all_that_is_wrong_and_exits_with_2(tiny: TinyRecipe, enginery: Enginery) -> None:
    assert enginery("check", "recipe.yaml", "--fleet", "fleet.yaml").code == 0
    (tiny.folder / "checkpoint" / "model.safetensors").unlink()
    (tiny.folder / "rows" / "evaluation.parquet").unlink()
    ran = enginery("check", "recipe.yaml", "--fleet", "fleet.yaml")
    assert ran.code == 2
    told = [line for line in ran.out.splitlines() if line.startswith("fix")]
    assert [line.split(":")[0] for line in told] == ["fix  source", "fix  evaluation rows"]


def test_a_release_tells_the_same_before_anything_starts(tiny: TinyRecipe, enginery: Enginery, tmp_path: Path) -> None:
    (tiny.folder / "checkpoint" / "tokenizer.json").unlink()
    ran = enginery("release", "recipe.yaml", "--fleet", "fleet.yaml")
    assert (ran.code, ran.out) == (2, "")
    assert "checkpoint has no tokenizer.json" in ran.err
    # Neither Prefect nor a stage nor an experiment in MLflow was begun.
    from registry.mlflow.store import embedded_store

    assert not list((tmp_path / "home").glob("prefect/*.db"))
    assert [each.name for each in embedded_store(tmp_path / "home").client.search_experiments()] == ["Default"]


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("config.json", {"_attn_implementation": "owner/repo"}, "_attn_implementation is 'owner/repo', which loads"),
        ("config.json", {"vocab_size": 10**12}, "vocab_size must be a whole number from 1 to"),
        ("config.json", {"hidden_size": 64}, "hidden_size 64, but the weights have 32"),
        ("tokenizer_config.json", {"auto_map": ["code.Tokenizer", None]}, "auto_map runs the author's Python code"),
        ("tokenizer.json", {"model": {"type": "Spell"}}, "does not work as a tokenizer"),
        (
            "tokenizer.json",
            {"normalizer": {"type": "Replace", "pattern": {"Regex": "("}, "content": ""}},
            "parenthesis",
        ),
    ],
    ids=["kernel", "size", "weights", "code", "tokenizer", "regex"],
)
def test_check_init_and_release_say_the_same_of_a_hostile_checkpoint(
    file: str, changes: dict[str, Any], words: str, tiny: TinyRecipe, enginery: Enginery
) -> None:
    hostile = tiny.folder / "checkpoint" / file
    hostile.write_text(json.dumps(json.loads(hostile.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    checked = enginery("check", "recipe.yaml", "--fleet", "fleet.yaml", "--json")
    (sentence,) = json.loads(checked.out)["problems"]
    assert sentence.startswith(f"checkpoint/{file}" if "weights" not in words else "checkpoint/config.json")
    assert words in sentence
    released = enginery("release", "recipe.yaml", "--fleet", "fleet.yaml")
    begun = enginery("init", "checkpoint", "--data", "rows", "--name", "new", "--fleet", "fleet.yaml")
    assert (checked.code, released.code, begun.code) == (2, 2, 2)
    assert sentence in released.err
    assert sentence in begun.err


def test_a_check_writes_nothing_but_the_empty_home(tiny: TinyRecipe, enginery: Enginery, tmp_path: Path) -> None:
    before = sorted(tiny.folder.rglob("*"))
    enginery("check", "recipe.yaml", "--fleet", "fleet.yaml")
    assert sorted(tiny.folder.rglob("*")) == before
    assert not list((tmp_path / "home").rglob("*"))


def test_init_writes_a_ranking_for_rows_with_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enginery: Enginery
) -> None:
    tiny = write_task_recipe(tmp_path / "ranking", "text-ranking")
    monkeypatch.chdir(tiny.folder)
    ran = enginery("init", "checkpoint", "--data", "rows", "--fleet", "fleet.yaml")
    assert ran.code == 0, ran.err
    written = Path("checkpoint.yaml").read_text(encoding="utf-8")
    assert "task: text-ranking" in written
    assert "query: query\n  text: text\n  score: score\n  max_length: 32" in written  # of both texts together
    assert "52 queries can prove that, evaluation has 22" in written


def test_init_writes_no_samples_for_a_model_of_spectrograms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enginery: Enginery
) -> None:
    tiny = write_task_recipe(tmp_path / "sounds", "audio-classification")
    monkeypatch.chdir(tiny.folder)
    save_spectrogram_listener(Path("spectrograms"))
    for checkpoint, has_samples in (("checkpoint", True), ("spectrograms", False)):
        ran = enginery("init", checkpoint, "--data", "rows", "--fleet", "fleet.yaml")
        assert ran.code == 0, ran.err
        assert ("samples: {min" in Path(f"{checkpoint}.yaml").read_text(encoding="utf-8")) == has_samples
