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

from benchmarks.quantization_tools import TOOLS, run_tool
from tasks.graphs.session import exact_options

RECIPE = Path("recipes/quickstart.yaml")
BATCH = 32
# Their docstrings are the text of another kind.
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
Feeds = list[dict[str, NDArray[Any]]]


def main() -> None:
    options = _options()
    if options.tool:
        run_tool(options.tool, Path(options.workspace), Path(options.into))
        return
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(options.workspace or scratch)
        if options.scaling:
            scale(workspace)
            return
        print(f"{options.rows} calibration rows, {options.held_out} held-out rows, 200 docstrings\n")
        compare_text(workspace, options.rows, options.held_out, options.tools.split(";") if options.tools else [*TOOLS])
        if options.full_size:
            compare_networks(workspace)


def _options() -> argparse.Namespace:
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
    """The sample model: each tool's accuracy, share of int8, time and memory."""
    model, encoder, texts, evaluation = exported(workspace)
    folder = workspace / "quantization"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fp32.onnx").write_bytes(model.read_bytes())
    save_feeds([encoder.encode(some) for _, some in encoder.batches(texts[:rows], BATCH)], folder / "rows.npz")
    scored = {
        "held out": [encoder.encode(some) for _, some in encoder.batches(evaluation[:held_out], BATCH)],
        "docstrings": [encoder.encode(some) for _, some in encoder.batches(docstrings(200), BATCH)],
    }
    compare(folder, scored, tools)


def scale(workspace: Path) -> None:
    """Statistics and all methods' ranges beside the bare pass, alternating: the least of all rounds, wall and CPU."""
    model, encoder, texts, _ = exported(workspace)
    print("  rows  rounds   bare s    all s  ratio    CPU  bare MB  all MB  ratio")
    for rows, rounds in ((64, 3), (1024, 3), (4096, 1)):
        folder = workspace / f"scaling-{rows}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fp32.onnx").write_bytes(model.read_bytes())
        save_feeds([encoder.encode(some) for _, some in encoder.batches(texts[:rows], BATCH)], folder / "rows.npz")
        pairs = [
            (measured("bare fp32 pass", folder), measured("enginery, statistics only", folder)) for _ in range(rounds)
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
    """Networks nobody tuned for: random weights, planted outliers, the sizes of BERT base and ViT base."""
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
    """Print one row a tool."""
    bare = measured("bare fp32 pass", folder)
    wanted = hidden_states(folder / "fp32.onnx")
    exact = {name: embeddings(folder / "fp32.onnx", feeds, wanted) for name, feeds in scored.items()}
    heads = "".join(f"{f'{name}: mean / min':>26}" for name in scored)
    print(f"{'tool':30}{heads}{'int8 MACs':>10}{'s':>8}{'x bare':>8}{'RSS MB':>8}{'x bare':>8}")
    blank = " " * (26 * len(scored) + 10)
    print(f"{'bare fp32 pass':30}{blank}{bare['seconds']:8.1f}{1:8.2f}{bare['peak_mb']:8.0f}{1:8.2f}")
    for tool in tools:
        try:
            result = measured(tool, folder)
        except subprocess.CalledProcessError as error:
            print(f"{tool:30} failed: {error.stderr.strip().splitlines()[-1][:150]}")
            continue
        line = f"{tool:30}"
        made = folder / f"{tool}.onnx"
        for name, feeds in scored.items():
            line += f"{_cosines(embeddings(made, feeds, wanted), exact[name]) if made.is_file() else '':>26}"
        share = f"{int8_share(folder / 'fp32.onnx', made):10.1%}" if made.is_file() else f"{'':10}"
        time, memory = result["seconds"] / bare["seconds"], result["peak_mb"] / bare["peak_mb"]
        print(f"{line}{share}{result['seconds']:8.1f}{time:8.2f}{result['peak_mb']:8.0f}{memory:8.2f}", flush=True)


def measured(tool: str, folder: Path) -> dict[str, float]:
    """Seconds and peak RSS of one tool in a process of its own; its graph lies in `folder` after."""
    report = folder / f"{tool}.json"
    command = [sys.executable, "-m", "benchmarks.quantization", "--tool", tool]
    subprocess.run([*command, "--workspace", folder, "--into", report], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(report.read_text())
    return found


def exported(workspace: Path) -> tuple[Path, Any, tuple[str, ...], list[str]]:
    """The recipe's fp32 graph, its text encoder, all rows of its calibration split, and the evaluation texts."""
    from calibration_data.reader import load_split
    from flows.inputs.recipe import load_recipe
    from flows.release import stages
    from flows.release.context import ReleaseContext
    from tasks.execution.workspace import Workspace

    def stage(kept: Workspace, step: Any) -> Any:
        return kept.stage(step.kind, step.inputs, step.value_type, step.make)

    setattr(stages, "run_stage", stage)  # noqa: B010 - without Prefect, as in benchmarks/release.py
    recipe = load_recipe(RECIPE)
    nothing: Any = None  # no registry and no signer: nothing is built or published here
    context = ReleaseContext(Workspace(workspace), recipe, lambda _what, _done: None, nothing, nothing, nothing)
    source = stages.make_source(context)
    evaluation = stages.evaluation_rows(context, source)
    graph = stages.make_onnx(context, source, evaluation)
    encoder = context.open_encoder(source, graph.input_names)
    calibration = load_split(recipe.dataset, recipe.model_task, recipe.data.calibration.split)
    # 4,096 rows are more than the calibration split has.
    fit = load_split(recipe.dataset, recipe.model_task, "fit")
    return graph.path, encoder, (*calibration.inputs, *fit.inputs), list(evaluation.inputs)


def docstrings(count: int) -> list[str]:
    """First sentences of the standard library's docstrings: text of another kind, on every machine."""
    return sorted(set(_first_sentences()))[::7][:count]


def _first_sentences() -> Iterator[str]:
    for module in MODULES:
        for _, value in inspect.getmembers(pkgutil.resolve_name(module)):
            for _, member in [("", value), *(inspect.getmembers(value) if inspect.isclass(value) else [])]:
                text = " ".join((inspect.getdoc(member) or "").split("\n\n")[0].split())
                if 25 < len(text) < 200:
                    yield text


def save_feeds(feeds: Feeds, file: Path) -> None:
    arrays = {f"{at}/{name}": value for at, feed in enumerate(feeds) for name, value in feed.items()}
    np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for other parameters


def hidden_states(exact: Path) -> str:
    """The first output where it is [rows, tokens, K], else what the last LayerNormalization gives.

    Of the fp32 graph: where only quantized layers read a LayerNormalization, smoothing changes what it gives.
    """
    graph = onnx.load(exact, load_external_data=False).graph
    if len(graph.output[0].type.tensor_type.shape.dim) == 3:
        return str(graph.output[0].name)
    return str([node.output[0] for node in graph.node if node.op_type == "LayerNormalization"][-1])


def embeddings(model: Path, feeds: Feeds, wanted: str) -> NDArray[np.float32]:
    """The tensor `wanted`, [rows, tokens, K], mean-pooled over real tokens: [rows, K]."""
    proto = onnx.load(model)
    if wanted not in {each.name for each in proto.graph.output}:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(wanted, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(proto.SerializeToString(), exact_options(), providers=["CPUExecutionProvider"])
    pooled = []
    for feed in feeds:
        hidden = session.run([wanted], feed)[0]
        mask = feed.get("attention_mask", np.ones(hidden.shape[:2], dtype=np.int64))[:, :, None]
        pooled.append((hidden * mask).sum(axis=1) / mask.sum(axis=1))
    return np.concatenate(pooled)


def _cosines(made: NDArray[np.float32], exact: NDArray[np.float32]) -> str:
    cosines = (made * exact).sum(axis=1) / np.linalg.norm(made, axis=1) / np.linalg.norm(exact, axis=1)
    return f"{cosines.mean():.4f} / {cosines.min():.4f}"


def int8_share(exact: Path, made: Path) -> float:
    """Share of the MACs of layers with constant weights (a token each) whose input and weight are dequantized."""
    from tasks.graphs.layers import Graph

    total = {each.node: int(np.prod(graph.weight(each).shape)) for graph in [Graph(onnx.load(exact))]
             for each in graph.linears()}  # fmt: skip
    quantized = Graph(onnx.load(made))
    int8 = 0
    for node in quantized.proto.graph.node:
        inputs = [quantized.producers.get(name) for name in node.input[:2]]
        if node.name in total and all(each is not None and _dequantizes(quantized, each) for each in inputs):
            int8 += total[node.name]
    return int8 / sum(total.values())


def _dequantizes(graph: Any, node: onnx.NodeProto) -> bool:
    while node.op_type in ("Transpose", "Reshape"):
        node = graph.producers[node.input[0]]
    return node.op_type == "DequantizeLinear"


if __name__ == "__main__":
    main()
