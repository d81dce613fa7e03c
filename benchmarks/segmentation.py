"""What int8 of a small SegFormer loses of its mean IoU, by this project and its peers, on the same rows.

    python -m calibration_data.digits.scenes   # rows and checkpoint of recipes/digit-scenes.yaml
    python -m benchmarks.segmentation          # 256 calibration rows, all evaluation rows, ONNX Runtime on CPU

Graph, calibration rows and metric are the recipe's. Every tool runs alone in a process of its own, as in
benchmarks/quantization.py; this project's graph is the plain int8 one, without the autopilot.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import onnxruntime as ort

from benchmarks.quantization import BATCH, measure_int8_share, run_apart, save_feeds
from calibration_data.reader import load_split
from flows.inputs.recipe import load_recipe
from tasks.checkpoints.source import from_folder
from tasks.graphs.export import export_checkpoint
from tasks.graphs.session import exact_options
from tasks.model_tasks.contract import Answers, Encoder, ModelTask
from tasks.verdicts.intervals import compare_scores, score_interval

RECIPE = Path("recipes/digit-scenes.yaml")
ROUNDERS = ("enginery", "onnxruntime min-max", "onnxruntime entropy", "modelopt max", "modelopt entropy")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    recipe = load_recipe(parser.parse_args().recipe)
    task, calibration = recipe.model_task, recipe.data.calibration
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "graphs"
        folder.mkdir()
        source = from_folder(
            Path(str(recipe.source.path)), name=recipe.model, task=recipe.task, into=Path(scratch) / "source"
        )
        graph = export_checkpoint(source, into=Path(scratch) / "export")
        (folder / "fp32.onnx").write_bytes(graph.path.read_bytes())
        encoder = task.open_encoder(source.directory, [tensor.name for tensor in graph.inputs], {})
        drawn = load_split(
            recipe.dataset, task, calibration.split, samples=calibration.samples, seed=calibration.seed
        ).inputs
        save_feeds([encoder.encode(batch) for _, batch in encoder.batches(drawn, BATCH)], folder / "rows.npz")
        rows = load_split(recipe.dataset, task, recipe.data.evaluation.split)
        metric, exact = task.metrics[0], answer(folder / "fp32.onnx", task, encoder, rows.inputs)
        before = metric.score(exact, rows.targets, exact)
        value, low, high = score_interval(before, metric.aggregate)
        print(f"{len(drawn)} calibration rows, {len(rows.inputs)} evaluation rows")
        print(f"{'fp32':22}{metric.name} {value:.2%} ({low:.2%} to {high:.2%})")
        for tool in ROUNDERS:
            try:
                result = run_apart(tool, folder)
            except subprocess.CalledProcessError as error:
                print(f"{tool:22}failed: {error.stderr.strip().splitlines()[-1][:150]}")
                continue
            made = folder / f"{tool}.onnx"
            after = metric.score(answer(made, task, encoder, rows.inputs), rows.targets, exact)
            loss = compare_scores(before, after, metric.aggregate)
            share = measure_int8_share(folder / "fp32.onnx", made)
            print(
                f"{tool:22}loses {loss.loss:+.2%} ({loss.low:+.2%} to {loss.high:+.2%}), {share:.1%} of the MACs in "
                f"int8, {result['seconds']:.1f} s",
                flush=True,
            )


def answer(graph: Path, task: ModelTask, encoder: Encoder, inputs: tuple[bytes, ...]) -> Answers:
    """Return the answer of a graph to each input, in their order."""
    session = ort.InferenceSession(graph, exact_options(), providers=["CPUExecutionProvider"])
    return [
        found
        for _, batch in encoder.batches(inputs, BATCH)
        for found in task.answers(session.run(None, encoder.encode(batch)), batch, encoder)
    ]


if __name__ == "__main__":
    main()
