"""The autopilot on the quickstart's model: what a nearer graph costs in int8, and how long finding it takes.

    python -m benchmarks.autopilot                # limits of 1 - cosine, weights rounded to nearest and by GPTQ

The gate is the mean of 1 - cosine to fp32 (mean-pooled hidden states, its bound one-sided at 95 %) on 512 rows of
the calibration split that calibration does not see. What it chose is scored on 400 rows of the evaluation split and
200 docstrings, which it has not seen either. Time is in passes: one fp32 pass over the evaluation split.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.quantization import (
    BATCH,
    RECIPE,
    describe_cosines,
    embed_rows,
    export_quickstart,
    find_hidden_states,
    read_docstrings,
)
from benchmarks.quantization_tools import Feeds
from calibration_data.reader import Rows, draw_behind, load_split
from flows.inputs.recipe import load_recipe
from tasks.calibration.collect import calibrate
from tasks.graphs.files import write_graph
from tasks.graphs.layers import Floats, Graph
from tasks.model_tasks.contract import Encoder
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tasks.quantization import qdq
from tasks.quantization.autopilot import Choice, choose_mix
from tasks.quantization.gptq import make_compensating_format
from tasks.quantization.holdout import Holdout, MetricGate, Outputs, Score, run_holdout
from tasks.quantization.qdq import WeightFormat
from tasks.quantization.scales import ActivationScale, choose_scales
from tasks.verdicts.intervals import Z_ONE_SIDED

CALIBRATED, HELD = 256, 512


@dataclass(frozen=True)
class CosineGate:
    """The mean of 1 - cosine of mean-pooled hidden states; `masks` [rows, T] of each feed."""

    masks: tuple[NDArray[np.int64], ...]
    limit: float
    digest = ""  # nothing is cached here

    def keep(self, _at: int, outputs: Outputs) -> Outputs:
        """Keep everything: the rows are few."""
        return outputs

    def score(self, exact: Sequence[Outputs], made: Sequence[Outputs]) -> Score:
        """Score the mean of 1 - cosine, with its bound."""
        pairs = zip(exact, made, self.masks, strict=True)
        loss = 1 - np.concatenate([compute_cosines(one[0], other[0], mask) for one, other, mask in pairs])
        bound = float(loss.mean() + Z_ONE_SIDED * loss.std() / np.sqrt(len(loss)))
        return Score(float(loss.mean()), bound, bound <= self.limit)

    def damage(self, at: int, exact: Outputs, made: Outputs) -> float:
        """Return the same mean on one feed."""
        return float((1 - compute_cosines(exact[0], made[0], self.masks[at])).mean())


def compute_cosines(exact: Floats, made: Floats, mask: NDArray[np.int64]) -> NDArray[np.float64]:
    one, other = ((states * mask[:, :, None]).sum(axis=1, dtype=np.float64) for states in (exact, made))
    cosine: NDArray[np.float64] = (
        (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    )
    return cosine


def main() -> None:
    parser = argparse.ArgumentParser(description="The autopilot on the quickstart's model.")
    parser.add_argument("--limits", type=float, nargs="+", default=[0.0015, 0.001, 0.0005])
    parser.add_argument("--workspace", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(options.workspace or scratch)
        model, encoder, texts, evaluation = export_quickstart(workspace)
        calibrated = [encoder.encode(group) for _, group in encoder.batches(texts[:CALIBRATED], BATCH)]
        held = [encoder.encode(group) for _, group in encoder.batches(texts[CALIBRATED : CALIBRATED + HELD], BATCH)]
        scored = [encoder.encode(group) for _, group in encoder.batches(evaluation[:400], BATCH)]
        others = [encoder.encode(group) for _, group in encoder.batches(read_docstrings(200), BATCH)]
        everything = [encoder.encode(group) for _, group in encoder.batches(evaluation, BATCH)]
        calibration = calibrate(model, calibrated)
        graph = Graph(onnx.load(model))
        scales = choose_scales(graph, calibration)
        roundings = {
            "nearest": qdq.round_int8_weight,
            "GPTQ": make_compensating_format(graph.list_linears(), scales, calibration),
        }
        started = time.perf_counter()
        run_holdout(model, Holdout(tuple(everything), CosineGate((), 0.0)))
        one_pass = time.perf_counter() - started
        print(f"one fp32 pass over the {len(evaluation)} evaluation rows: {one_pass:.1f} s; {HELD} holdout rows\n")
        print(f"{'limit':>8} rounding{'int8 MACs':>11}{'blocks fp32':>13}{'mixes':>7}{'s':>7}{'passes':>8}"
              f"{'held out: mean / min':>24}{'docstrings: mean / min':>24}")  # fmt: skip
        hidden_states = find_hidden_states(model)
        gates = [CosineGate(tuple(feed["attention_mask"] for feed in held), limit) for limit in options.limits]
        for gate, (name, rounding) in product(gates, roundings.items()):
            started = time.perf_counter()
            mix, choice = choose_mix(model, scales, {name: rounding}, Holdout(tuple(held), gate, (hidden_states,)))
            seconds = time.perf_counter() - started
            file = workspace / "mixed.onnx"
            onnx.save(mix, file)
            print(f"{gate.limit:8.4f} {name:8}{choice.int8_share:11.1%}{len(choice.kept):8} / {len(choice.blocks)}"
                  f"{len(choice.path):7}{seconds:7.1f}{seconds / one_pass:8.2f}"
                  f"{compare_answers(model, file, scored):>24}"
                  f"{compare_answers(model, file, others):>24}", flush=True)  # fmt: skip
            print_path(choice)
        check_classifier(model, encoder, scales, roundings["GPTQ"])


def check_classifier(model: Path, encoder: Encoder, scales: dict[str, ActivationScale], rounding: WeightFormat) -> None:
    """Hold the classifier itself to half a point: chosen on the calibration split, proven on the evaluation split."""
    recipe = load_recipe(RECIPE)
    ref, spec, task = recipe.dataset, recipe.data.calibration, recipe.model_task
    rows = load_split(ref, task, recipe.data.evaluation.split)
    spare = draw_behind(
        ref, task, spec.split, after=spec.samples, samples=10_000, seed=spec.seed, apart_from=rows.inputs
    )
    holdout, proof = (make_holdout(encoder, split, 0.005) for split in (spare, rows))
    mix, choice = choose_mix(model, scales, {"nearest": qdq.round_int8_weight, "GPTQ": rounding}, holdout)
    with tempfile.TemporaryDirectory() as folder:
        exact, quantized = run_holdout(model, proof), run_holdout(write_graph(mix, Path(folder)), proof)
        score = proof.gate.score(exact, quantized)
    print(f"\nclassifier, at most 0.5 points: {choice.in_words}")
    print(f"on the {proof.rows} evaluation rows it loses {score.loss:+.2%}, at most {score.bound:.2%} at 95 %")


def make_holdout(encoder: Encoder, rows: Rows, limit: float) -> Holdout:
    groups = list(encoder.batches(rows.inputs, BATCH))
    targets = tuple(rows.targets[place] for places, _ in groups for place in places)
    gate = MetricGate(TEXT_CLASSIFICATION, encoder, tuple(tuple(texts) for _, texts in groups), targets, limit)
    return Holdout(tuple(encoder.encode(texts) for _, texts in groups), gate)


def compare_answers(exact: Path, mix: Path, feeds: Feeds) -> str:
    tensor = find_hidden_states(exact)
    return describe_cosines(embed_rows(exact, feeds, tensor), embed_rows(mix, feeds, tensor))


def print_path(choice: Choice) -> None:
    for tried in choice.path:
        print(f"{'':8}{tried.int8_share:11.1%}{tried.kept:9} kept: {tried.loss:.5f}, bound {tried.bound:.5f}")
    worst = sorted(choice.blocks, key=lambda block: -(block.damage or 0))[:6]
    print(f"{'':8}most damage: " + ", ".join(f"{block.tensor.strip('/')} {block.damage or 0:.2g}" for block in worst))


if __name__ == "__main__":
    main()
