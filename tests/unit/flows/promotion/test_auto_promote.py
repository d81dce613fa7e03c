"""What a refresh promotes by itself, and everything that it leaves to a person."""

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from calibration_data.reader import load_split
from flows.inputs.recipe import Recipe
from flows.promotion.auto_promote import WHO, Promotion, promote_proven
from registry.promotion.promote import nominate
from registry.promotion.rules import Decision
from registry.records import Machine, Measurement, Verdict
from tasks.measurement.row_results import RowResults
from tests.support.deciding import promote, rollback
from tests.support.memory_store import MemoryStore

L4 = Machine("x86", 8, "NVIDIA L4", "580.10")
ROWS = 400
AT = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)
Publish = Callable[..., int]
Run = Callable[..., Promotion]
# A version in production, and how many times as long as its own a candidate's calls take: from, to.
Beside = tuple[int, float, float]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    rows = tmp_path / "rows"
    rows.mkdir()
    table = pyarrow.table({"text": [f"row {at}" for at in range(ROWS)], "label": [at % 2 for at in range(ROWS)]})
    pyarrow.parquet.write_table(table, rows / "evaluation.parquet")
    span = {"min": 1, "opt": 8, "max": 32}
    return Recipe.model_validate_json(
        json.dumps(
            {
                "model": "sst2",
                "source": {"path": "checkpoint"},
                "data": {"path": str(rows), "max_length": 32},
                "precisions": ["fp32"],
                "targets": ["l4"],
                "profiles": [{"batch": span, "sequence": span}],
                "gates": {"loss_max": 0.02},
                "auto_promote": True,
            }
        )
    )


def fleet(folder: Path, **more: object) -> Path:
    target = {"backend": "tensorrt", "compute_capability": "8.9", **more}
    (folder / "fleet.yaml").write_text(json.dumps({"targets": {"l4": target}}), encoding="utf-8")
    return folder / "fleet.yaml"


@pytest.fixture
def kept() -> dict[int, RowResults]:
    """What the runs of versions keep."""
    return {}


@pytest.fixture
def publish(memory_store: MemoryStore, manifest_factory: Any, recipe: Recipe, kept: dict[int, RowResults]) -> Publish:
    """`publish(wrong, p50=…)` publishes an engine for l4 that answers the first `wrong` rows wrongly; its version."""
    digest = load_split(recipe.dataset, recipe.model_task, "evaluation").digest

    def make(wrong: int, *, p50: float = 2.0, keep: bool = True, beside: Beside | None = None, **fields: Any) -> int:
        number = len(memory_store.versions("sst2")) + 1
        manifest, directory = manifest_factory(b"plan %d" % number, sequence=number)
        scores = tuple((float(row >= wrong),) for row in range(ROWS))
        if keep:
            kept[number] = RowResults(digest, scores, ((1.0,),) * ROWS)
        share = 1 - wrong / ROWS
        own = "engine", manifest.build.digest, L4
        figures = [
            Measurement("accuracy", share, "share", ROWS, *own, share - 0.05, share + 0.05),
            Measurement("latency_p50_ms", p50, "ms", 900, *own, p50 * 0.99, p50 * 1.01),
            Measurement("latency_p99_ms", p50 * 2, "ms", 900, *own, p50 * 1.98, p50 * 2.02),
        ]
        if beside is not None:
            version, low, high = beside
            against = memory_store.version("sst2", version).digest
            figures += [
                Measurement(metric, (low + high) / 2, "ratio", 900, *own, low, high, against=against)
                for metric in ("p50_over_production", "p99_over_production")
            ]
        made = replace(manifest, **{"measurements": tuple(figures), "evaluation_set": digest, **fields})
        memory_store.publish(made, directory)
        return number

    return make


@pytest.fixture
def run(memory_store: MemoryStore, recipe: Recipe, kept: dict[int, RowResults], tmp_path: Path) -> Run:
    """`run()` is what became of the one new candidate; `run(auto_promote=False)` with another recipe."""

    def promote_new(*, auto_promote: bool = True, before: dict[str, int] | None = None, **target: object) -> Promotion:
        decision = Decision(WHO, "refreshed", AT, flow_run="run-9")
        found = promote_proven(
            memory_store,
            recipe.model_copy(update={"auto_promote": auto_promote}),
            fleet(tmp_path, **target),
            before or {},
            decision,
            kept.get,
        )
        assert found
        assert found[0].promoted == (memory_store.aliases("sst2").get("production-l4") == found[0].version)
        return found[0]

    return promote_new


def test_a_regression_beside_production_is_left_and_says_by_how_much(
    memory_store: MemoryStore, publish: Publish, run: Run
) -> None:
    promote(memory_store, "l4", publish(20))
    nominate(memory_store, "sst2", "l4", publish(20, p50=1.0, beside=(1, 1.15, 1.21)))
    assert "p50 1.18 times as long as in production (1.15 to 1.21)" in run().reason


def test_calls_beside_production_promote_what_old_figures_would_not(
    memory_store: MemoryStore, publish: Publish, run: Run
) -> None:
    promote(memory_store, "l4", publish(20))
    nominate(memory_store, "sst2", "l4", publish(20, p50=3.0, beside=(1, 0.95, 1.02)))
    assert run().promoted
    assert "side by side" in memory_store.events("sst2")[-1].why


def test_what_answers_as_well_and_is_no_slower_is_promoted_with_its_evidence(
    memory_store: MemoryStore, publish: Publish, run: Run
) -> None:
    promote(memory_store, "l4", publish(20))
    candidate = publish(20, p50=1.5)
    nominate(memory_store, "sst2", "l4", candidate)
    assert run().promoted
    event = memory_store.events("sst2")[-1]
    assert (event.who, event.to_version, event.flow_run) == ("refresh-engines", candidate, "run-9")
    assert "paired accuracy loss on 400 rows against production" in event.why


def test_what_answers_worse_is_left_with_the_reason(memory_store: MemoryStore, publish: Publish, run: Run) -> None:
    promote(memory_store, "l4", publish(0))
    nominate(memory_store, "sst2", "l4", publish(40))
    found = run()
    assert not found.promoted
    assert "failed" in found.reason
    assert "it regressed" in found.reason


def test_what_is_slower_is_left(memory_store: MemoryStore, publish: Publish, run: Run) -> None:
    promote(memory_store, "l4", publish(20))
    nominate(memory_store, "sst2", "l4", publish(20, p50=3.0))
    assert "latency_p50_ms 3.00 against 2.00" in run().reason


def test_where_answers_are_gone_the_intervals_must_do_and_prove_less(
    memory_store: MemoryStore, publish: Publish, run: Run
) -> None:
    promote(memory_store, "l4", publish(20, keep=False))
    nominate(memory_store, "sst2", "l4", publish(19))
    found = run()
    assert "inconclusive" in found.reason
    assert "paired" not in found.reason


@pytest.mark.parametrize("edit", [{"scores": ((1.0,),) * ROWS}, {"scores": ()}, {"evaluation_set": "others"}])
def test_answers_that_do_not_give_the_signed_figure_are_not_used(
    memory_store: MemoryStore, publish: Publish, run: Run, kept: dict[int, RowResults], edit: dict[str, Any]
) -> None:
    promote(memory_store, "l4", publish(20))
    nominate(memory_store, "sst2", "l4", publish(30))
    kept[2] = replace(kept[2], **edit)
    assert "paired" not in run().reason


def test_other_evaluation_data_is_no_proof(memory_store: MemoryStore, publish: Publish, run: Run) -> None:
    promote(memory_store, "l4", publish(20, evaluation_set="older rows"))
    nominate(memory_store, "sst2", "l4", publish(20))
    assert "other evaluation data" in run().reason


def test_a_recipe_that_does_not_allow_it_leaves_it_to_a_person(
    memory_store: MemoryStore, publish: Publish, run: Run
) -> None:
    promote(memory_store, "l4", publish(20))
    nominate(memory_store, "sst2", "l4", publish(20))
    found = run(auto_promote=False)
    assert "auto_promote: false" in found.reason


def test_a_protected_target_is_not_approved_by_a_machine(memory_store: MemoryStore, publish: Publish, run: Run) -> None:
    promote(memory_store, "l4", publish(20))
    nominate(memory_store, "sst2", "l4", publish(20))
    assert "two people" in run(protected=True).reason
    assert len(memory_store.events("sst2")) == 1


def test_the_first_promotion_is_a_persons(memory_store: MemoryStore, publish: Publish, run: Run) -> None:
    nominate(memory_store, "sst2", "l4", publish(20))
    assert "first promotion" in run().reason


def test_what_somebody_rolled_back_does_not_come_back_by_itself(
    memory_store: MemoryStore, publish: Publish, run: Run
) -> None:
    promote(memory_store, "l4", publish(20))
    promote(memory_store, "l4", publish(20))
    rollback(memory_store, "l4")
    nominate(memory_store, "sst2", "l4", 2)
    assert "somebody moved on" in run().reason
    assert memory_store.aliases("sst2")["production-l4"] == 1


def test_the_rules_of_promotion_hold_here_too(memory_store: MemoryStore, publish: Publish, run: Run) -> None:
    promote(memory_store, "l4", publish(20))
    nominate(memory_store, "sst2", "l4", publish(20, verdict=Verdict.INCONCLUSIVE))
    assert "is inconclusive" in run().reason


@pytest.mark.parametrize("before", ["candidate-l4", "production-l4"])
def test_a_candidate_that_is_not_new_is_not_looked_at(
    memory_store: MemoryStore, publish: Publish, recipe: Recipe, tmp_path: Path, before: str
) -> None:
    first, second = publish(20), publish(20)
    promote(memory_store, "l4", first if before == "candidate-l4" else second)
    nominate(memory_store, "sst2", "l4", second)
    aliases = {"candidate-l4": second} if before == "candidate-l4" else {}
    decision = Decision(WHO, "refreshed", AT)
    found = promote_proven(memory_store, recipe, fleet(tmp_path), aliases, decision, lambda _: None)
    assert found == ()
