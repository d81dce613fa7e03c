"""A recipe over a tiny BERT that takes seconds to release."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tests.support.tiny import WORDS, tiny_bert

LABELS = ("negative", "positive")


EVALUATION_ROWS = 64


CALIBRATION_ROWS = 24


PROFILES = [{"batch": {"min": 1, "opt": 2, "max": 4}, "sequence": {"min": 4, "opt": 8, "max": 16}}]


RECIPE = {
    "model": "tiny",
    "source": {"path": "checkpoint"},
    "data": {"path": "rows", "max_length": 16, "calibration": {"samples": 16}},
    "precisions": ["fp32", "int8-dynamic", "int8"],
    "targets": ["cpu", "rtx-4090"],
    "profiles": PROFILES,
    "gates": {"loss_max": 1.0, "size_mb_max": 50.0},
    "latency": {"windows": 4, "iterations": 5, "warmup": 1, "sweep_seconds_max": 0},
    "workspace_mb": 64,
}


FLEET = {
    "targets": {
        "cpu": {"backend": "onnxruntime"},
        "rtx-4090": {
            "backend": "tensorrt_rtx",
            "compute_capability": "8.9",
            "gpu_name": "NVIDIA GeForce RTX 4090",
            "work_pool": "rtx",
        },
    }
}


@dataclass(frozen=True)
class TinyRecipe:
    """A folder with recipe.yaml, fleet.yaml, the checkpoint and the rows; paths in the recipe are relative to it."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def fleet(self) -> Path:
        return self.folder / "fleet.yaml"

    def rows(self, split: str) -> list[str]:
        from datasets import Dataset

        return list(Dataset.from_parquet(str(self.folder / "rows" / f"{split}.parquet"), keep_in_memory=True)["text"])


def write_split(folder: Path, split: str, texts: list[str]) -> None:
    """A Parquet split whose labels name the tiny model's classes."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(LABELS))})
    columns = {"text": texts, "label": [int("good" in text) for text in texts]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(folder / f"{split}.parquet"))


def convert_splits(folder: Path, form: str) -> None:
    """Write each Parquet split of a folder in another form, with its labels as numbers, and remove it."""
    import datasets
    import pandas as pd

    for file in folder.glob("*.parquet"):
        rows = pd.read_parquet(file)
        write: dict[str, Callable[[Path], object]] = {
            "csv": partial(rows.to_csv, index=False),
            "tsv": partial(rows.to_csv, index=False, sep="\t"),
            "json": partial(rows.to_json, orient="records"),
            "jsonl": partial(rows.to_json, orient="records", lines=True),
            "saved": datasets.Dataset.from_pandas(rows).save_to_disk,
        }
        write[form](file.with_suffix("" if form == "saved" else f".{form}"))
        file.unlink()


def write_tiny_recipe(folder: Path) -> TinyRecipe:
    """Checkpoint, disjoint splits, recipe and fleet under `folder`; the same bytes each time."""
    words = [word for word in WORDS if not word.startswith("##")]
    draw = random.Random(7)  # noqa: S311  # rows, not secrets
    texts: dict[str, None] = {}
    while len(texts) < EVALUATION_ROWS + CALIBRATION_ROWS:
        texts[" ".join(draw.choices(words, k=draw.randint(3, 12)))] = None
    (folder / "rows").mkdir(parents=True)
    tiny_bert(folder / "checkpoint", LABELS)
    write_split(folder / "rows", "evaluation", list(texts)[:EVALUATION_ROWS])
    write_split(folder / "rows", "calibration", list(texts)[EVALUATION_ROWS:])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    (folder / "fleet.yaml").write_text(yaml.safe_dump(FLEET), encoding="utf-8")
    return TinyRecipe(folder)


def release_into(home: Path, recipe: Any, fleet: Any, on_step_end: Callable[[Any], None] = lambda _: None) -> Any:
    """What `enginery release` does with a parsed recipe and fleet, less the printing; the report."""
    # Prefect is imported by these, and reads its settings when it is.
    from flows.release.context import ReleaseContext
    from flows.release.identity import find_release
    from flows.release.progress import Tally, progress_report
    from flows.release.release_engines import release_engines
    from registry.bundle.signing import local_signer, local_trust
    from registry.mlflow.store import embedded_store
    from tasks.execution.workspace import Workspace

    store = embedded_store(home)
    pinned, name, found = find_release(recipe, fleet, store)
    trust, tally = partial(local_trust, home), Tally()
    tally.expect({}, on_step_end)
    with progress_report(Console(), tally, quiet=True) as reporter:
        context = ReleaseContext(Workspace(home / "stages"), pinned, reporter, store, local_signer(home), trust)
        return found or release_engines(context, fleet, name)


def copy_home(first: Path, home: Path) -> Path:
    """A copy whose registry points at its own artifacts: MLflow keeps absolute paths."""
    shutil.copytree(first, home)
    (home / "mlflow.db").unlink()
    with closing(sqlite3.connect(first / "mlflow.db")) as old:
        script = "\n".join(old.iterdump()).replace(str(first), str(home))
    with closing(sqlite3.connect(home / "mlflow.db")) as new:
        new.executescript(script)
    return home
