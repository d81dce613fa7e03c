"""Int8 of the quickstart's graph by this project and its peers, on the same rows, scored on the same held-out rows.

    python -m benchmarks.quantization                  # 256 calibration rows, 400 held-out rows and 200 docstrings
    python -m benchmarks.quantization --scaling        # 64, 1,024 and 4,096 rows: at most 1.4 bare passes, 1.25 memory
    python -m benchmarks.quantization --full-size      # also BERT-base- and ViT-base-shaped, with planted outliers

Every tool runs alone in a process of its own: wall seconds without imports, and the peak RSS of the whole process. The
floor is the bare fp32 pass over the calibration rows in the same batches of 32. Cosines are of mean-pooled hidden
states, ONNX Runtime on CPU. The graph comes from the recipe's own stages, in --workspace.
"""

import argparse
import inspect
import json
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.quantization_tools import TOOLS, Feeds, run_tool
from tasks.graphs.session import exact_options

RECIPE = Path("recipes/quickstart.yaml")
BATCH = 32
# Their docstrings are text of another kind than the calibration rows.
MODULES = (
    "argparse",
    "asyncio",
    "collections",
    "decimal",
    "email.message",
    "http.client",
    "logging",
    "os",
    "pathlib",
    "random",
    "shutil",
    "sqlite3",
    "statistics",
    "subprocess",
    "tarfile",
    "turtle",
)


def main() -> None:
    options = parse_options()
    if options.tool:
        run_tool(options.tool, Path(options.workspace), Path(options.into))
        return
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(options.workspace or scratch)
        if options.scaling:
            measure_scaling(workspace)
            return
        print(f"{options.rows} calibration rows, {options.held_out} held-out rows, 200 docstrings\n")
        compare_text(workspace, options.rows, options.held_out, options.tools.split(";") if options.tools else [*TOOLS])
        if options.full_size:
            compare_networks(workspace)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--tools", default="", help="separated by semicolons, all unless given")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--workspace", default="")
    parser.add_argument("--tool", default="", help=argparse.SUPPRESS)
    parser.add_argument("--into", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare_text(workspace: Path, rows: int, held_out: int, tools: list[str]) -> None:
    """Print each tool's accuracy, share of int8, time and memory on the sample model."""
    model, encoder, texts, evaluation = export_quickstart(workspace)
    folder = workspace / "quantization"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fp32.onnx").write_bytes(model.read_bytes())
    save_feeds([encoder.encode(group) for _, group in encoder.batches(texts[:rows], BATCH)], folder / "rows.npz")
    scored = {
        "held out": [encoder.encode(group) for _, group in encoder.batches(evaluation[:held_out], BATCH)],
        "docstrings": [encoder.encode(group) for _, group in encoder.batches(read_docstrings(200), BATCH)],
    }
    compare(folder, scored, tools)


def measure_scaling(workspace: Path) -> None:
    """Print the cost of statistics and all ranges against the bare pass, alternating: the least of all rounds."""
    model, encoder, texts, _ = export_quickstart(workspace)
    print("  rows  rounds   bare s    all s  ratio    CPU  bare MB  all MB  ratio")
    for rows, rounds in ((64, 3), (1024, 3), (4096, 1)):
        folder = workspace / f"scaling-{rows}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fp32.onnx").write_bytes(model.read_bytes())
        save_feeds([encoder.encode(group) for _, group in encoder.batches(texts[:rows], BATCH)], folder / "rows.npz")
        pairs = [
            (run_apart("bare fp32 pass", folder), run_apart("enginery, statistics only", folder)) for _ in range(rounds)
        ]
        bare, all_methods = (min(pair[at]["seconds"] for pair in pairs) for at in (0, 1))
        cpu = min(pair[1]["cpu_seconds"] for pair in pairs) / min(pair[0]["cpu_seconds"] for pair in pairs)
        bare_mb, all_mb = (max(pair[at]["peak_mb"] for pair in pairs) for at in (0, 1))
        print(
            f"{rows:6}{rounds:8}{bare:9.2f}{all_methods:9.2f}{all_methods / bare:7.2f}{cpu:7.2f}"
            f"{bare_mb:9.0f}{all_mb:8.0f}{all_mb / bare_mb:7.2f}",
            flush=True,
        )


def compare_networks(workspace: Path) -> None:
    """Compare on networks that nothing was tuned on: random weights, planted outliers, BERT-base and ViT-base sizes."""
    from tests.support.outlier_networks import bert, vit

    random = np.random.default_rng(0)
    lengths = random.integers(8, 48, size=64)
    tokens: Feeds = [{"input_ids": random.integers(0, 30522, size=(1, length))} for length in lengths]
    images: Feeds = [{"pixels": random.standard_normal((1, 3, 224, 224)).astype(np.float32)} for _ in range(24)]
    networks = {
        "bert-base-shaped": (bert(768, 12, 12, 30522), tokens),
        "vit-base-shaped": (vit(768, 12, 12, 224, 16), images),
    }
    for name, (network, feeds) in networks.items():
        print(f"\n{name}")
        folder = workspace / name
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(network, folder / "fp32.onnx")
        half = len(feeds) // 2
        save_feeds(feeds[:half], folder / "rows.npz")
        compare(folder, {"held out": feeds[half:]}, ["enginery", "onnxruntime min-max"])


def compare(folder: Path, scored: dict[str, Feeds], tools: list[str]) -> None:
    """Print one row per tool."""
    bare = run_apart("bare fp32 pass", folder)
    tensor = find_hidden_states(folder / "fp32.onnx")
    exact = {name: embed_rows(folder / "fp32.onnx", feeds, tensor) for name, feeds in scored.items()}
    heads = "".join(f"{f'{name}: mean / min':>26}" for name in scored)
    print(f"{'tool':30}{heads}{'int8 MACs':>10}{'s':>8}{'x bare':>8}{'RSS MB':>8}{'x bare':>8}")
    blank = " " * (26 * len(scored) + 10)
    print(f"{'bare fp32 pass':30}{blank}{bare['seconds']:8.1f}{1:8.2f}{bare['peak_mb']:8.0f}{1:8.2f}")
    for tool in tools:
        try:
            result = run_apart(tool, folder)
        except subprocess.CalledProcessError as error:
            print(f"{tool:30} failed: {error.stderr.strip().splitlines()[-1][:150]}")
            continue
        line = f"{tool:30}"
        graph = folder / f"{tool}.onnx"
        for name, feeds in scored.items():
            line += f"{describe_cosines(embed_rows(graph, feeds, tensor), exact[name]) if graph.is_file() else '':>26}"
        share = f"{measure_int8_share(folder / 'fp32.onnx', graph):10.1%}" if graph.is_file() else f"{'':10}"
        time, memory = result["seconds"] / bare["seconds"], result["peak_mb"] / bare["peak_mb"]
        print(f"{line}{share}{result['seconds']:8.1f}{time:8.2f}{result['peak_mb']:8.0f}{memory:8.2f}", flush=True)


def run_apart(tool: str, folder: Path) -> dict[str, float]:
    """Run one tool in a process of its own, which writes its graph to `folder`; return seconds and peak RSS."""
    report = folder / f"{tool}.json"
    command = [sys.executable, "-m", "benchmarks.quantization", "--tool", tool]
    subprocess.run([*command, "--workspace", folder, "--into", report], check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(report.read_text())
    return result


def export_quickstart(workspace: Path) -> tuple[Path, Any, tuple[str, ...], list[str]]:
    """Run the recipe's stages up to its fp32 graph.

    Returns the graph, its text encoder, the texts of the calibration and fit splits, and the evaluation texts.
    """
    from calibration_data.reader import load_split
    from flows.inputs.recipe import load_recipe
    from flows.inputs.rows import evaluation_rows
    from flows.release import context as context_module
    from flows.release import stages
    from flows.release.context import ReleaseContext
    from flows.release.progress import lines_report
    from tasks.execution.workspace import Workspace

    def run_stage(cache: Workspace, step: Any, _reporter: Any) -> Any:
        return cache.stage(step.kind, step.inputs, step.value_type, step.make)

    setattr(context_module, "run_stage", run_stage)  # noqa: B010 - without Prefect, as in benchmarks/release.py
    recipe = load_recipe(RECIPE)
    nothing: Any = None  # no registry and no signer: nothing is built or published here
    context = ReleaseContext(Workspace(workspace), recipe, lines_report(lambda _: None), nothing, nothing, nothing)
    source = stages.make_source(context)
    evaluation = evaluation_rows(recipe, source.source)
    graph = stages.make_onnx(context, source, evaluation)
    encoder = context.open_encoder(source, graph.input_names)
    calibration = load_split(recipe.dataset, recipe.model_task, recipe.data.calibration.split)
    # 4,096 rows are more than the calibration split has.
    fit = load_split(recipe.dataset, recipe.model_task, "fit")
    return graph.path, encoder, (*calibration.inputs, *fit.inputs), list(evaluation.inputs)


def read_docstrings(count: int) -> list[str]:
    """Return first sentences of the standard library's docstrings: text of another kind, on every machine."""
    return sorted(set(_walk_docstrings()))[::7][:count]


def _walk_docstrings() -> Iterator[str]:
    for module in MODULES:
        for _, value in inspect.getmembers(pkgutil.resolve_name(module)):
            for _, member in [("", value), *(inspect.getmembers(value) if inspect.isclass(value) else [])]:
                text = " ".join((inspect.getdoc(member) or "").split("\n\n")[0].split())
                if 25 < len(text) < 200:
                    yield text


def save_feeds(feeds: Feeds, file: Path) -> None:
    arrays = {f"{index}/{name}": value for index, feed in enumerate(feeds) for name, value in feed.items()}
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for other parameters


def find_hidden_states(exact: Path) -> str:
    """Name the fp32 graph's first output if that is [rows, tokens, K], else its last LayerNormalization's.

    Of the fp32 graph: smoothing changes the output of a LayerNormalization that only quantized layers read.
    """
    graph = onnx.load(exact, load_external_data=False).graph
    if len(graph.output[0].type.tensor_type.shape.dim) == 3:
        return str(graph.output[0].name)
    return str([node.output[0] for node in graph.node if node.op_type == "LayerNormalization"][-1])


def embed_rows(model: Path, feeds: Feeds, tensor: str) -> NDArray[np.float32]:
    """Mean-pool a tensor [rows, tokens, K] over real tokens, to [rows, K]."""
    proto = onnx.load(model)
    if tensor not in {output.name for output in proto.graph.output}:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(proto.SerializeToString(), exact_options(), providers=["CPUExecutionProvider"])
    pooled = []
    for feed in feeds:
        hidden = session.run([tensor], feed)[0]
        mask = feed.get("attention_mask", np.ones(hidden.shape[:2], dtype=np.int64))[:, :, None]
        pooled.append((hidden * mask).sum(axis=1) / mask.sum(axis=1))
    return np.concatenate(pooled)


def describe_cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> str:
    cosines = (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return f"{cosines.mean():.4f} / {cosines.min():.4f}"


def measure_int8_share(exact: Path, quantized_file: Path) -> float:
    """Return the share of MACs per token, of layers with constant weights, whose input and weight are dequantized."""
    from tasks.graphs.layers import Graph

    total = {each.node: int(np.prod(graph.read_weight(each).shape)) for graph in [Graph(onnx.load(exact))]
             for each in graph.list_linears()}  # fmt: skip
    quantized = Graph(onnx.load(quantized_file))
    int8 = 0
    for node in quantized.proto.graph.node:
        inputs = [quantized.producers.get(name) for name in node.input[:2]]
        if node.name in total and all(
            producer is not None and _is_dequantized(quantized, producer) for producer in inputs
        ):
            int8 += total[node.name]
    return int8 / sum(total.values())


def _is_dequantized(graph: Any, node: onnx.NodeProto) -> bool:
    while node.op_type in ("Transpose", "Reshape"):
        node = graph.producers[node.input[0]]
    return node.op_type == "DequantizeLinear"


if __name__ == "__main__":
    main()
