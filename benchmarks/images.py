"""What int8 loses of the metric of a task of images, by this project and its peers, on the same rows.

    python -m calibration_data.digits.scenes      # rows and checkpoint of recipes/digit-scenes.yaml
    python -m benchmarks.images                   # 256 calibration rows, all evaluation rows, ONNX Runtime on CPU
    python -m calibration_data.digits.detection   # those of recipes/digit-detection.yaml
    python -m benchmarks.images --recipe recipes/digit-detection.yaml

So do digits.make and recipes/digits.yaml (a ResNet), and digits.transformer and recipes/digits-vit.yaml (a ViT).

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
from flows.inputs.recipe import Recipe, load_recipe
from registry.records import OnnxArtifact, SourceFiles
from tasks.checkpoints.source import from_folder
from tasks.graphs.export import export_checkpoint
from tasks.graphs.given.source import copy_graph, digest_graph, locate_graph, run_admission
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
        source, graph = make_graph(recipe, Path(scratch))
        (folder / "fp32.onnx").write_bytes(graph.path.read_bytes())
        encoder = task.open_encoder(source.directory, [tensor.name for tensor in graph.inputs], {})
        drawn = load_split(
            recipe.dataset, task, calibration.split, samples=calibration.samples, seed=calibration.seed
        ).inputs
        save_feeds([encoder.encode(batch) for _, batch in encoder.batches(drawn, BATCH)], folder / "rows.npz")
        rows = load_split(recipe.dataset, task, recipe.data.evaluation.split)
        metric, exact = task.metrics[0], answer(folder / "fp32.onnx", task, encoder, rows.inputs)
        rows = task.align_rows(rows, source.source)
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
                f"{tool:22}loses {loss.loss:+.2%} ({loss.low:+.2%} to {loss.high:+.2%}), {loss.flips} rows changed, "
                f"{share:.1%} of the MACs in int8, {result['seconds']:.1f} s",
                flush=True,
            )


def make_graph(recipe: Recipe, scratch: Path) -> tuple[SourceFiles, OnnxArtifact]:
    """Export the recipe's checkpoint, or admit its graph."""
    into, named = scratch / "source", recipe.source
    if named.onnx is None:
        source = from_folder(Path(str(named.path)), name=recipe.model, task=recipe.task, into=into)
        return source, export_checkpoint(source, into=scratch / "export")
    given = Path(named.onnx)
    source = copy_graph(
        given, digest_graph(given), recipe.processor, named.labels or (), name=recipe.model, task=recipe.task, into=into
    )
    (scratch / "export").mkdir()
    graph = run_admission(locate_graph(source), recipe.model_task, source.directory, None, into=scratch / "export")
    return source, graph


def answer(graph: Path, task: ModelTask, encoder: Encoder, inputs: tuple[bytes, ...]) -> Answers:
    """Return the answer of a graph to each input, in their order."""
    session = ort.InferenceSession(graph, exact_options(), providers=["CPUExecutionProvider"])
    return [
        found
        for _, batch in encoder.batches(inputs, BATCH)
        for found in task.answers(
            task.reduce_outputs(session.run(None, encoder.encode(batch)), batch, encoder), batch, encoder
        )
    ]


if __name__ == "__main__":
    main()
