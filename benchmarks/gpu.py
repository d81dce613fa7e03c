"""Engines of target `cuda` on this machine's GPU, beside PyTorch in the same run: times by phase, and CUDA graphs.

    python -m benchmarks.gpu CHECKPOINT fp32=engine.onnx fp16=… int8=… [--same 100] [--results FILE]

Every call is timed from host arrays to host arrays, the peers' too. For each engine and batch: the median call, its
three phases by the GPU's own events, and the median call with a CUDA graph. The peers are the checkpoint's own BERT in
PyTorch, eager and compiled for few calls (`reduce-overhead`, which captures CUDA graphs as well). The windows of all
are interleaved. The floor is the larger of products over the peak, and weights over the memory's bandwidth, of the
H100 SXM by NVIDIA's data sheet. For batch 1 also the call behind 256 MB of other writes, which leave nothing of the
weights in the L2 cache. `--same N` compares the last engine with itself N times, as a release decides a speed-up,
beside the method of a peer; and says how wide the interval is at each look.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.verdicts import FIRST, compare_means, decide
from registry.digest import file_sha256
from registry.errors import EngineryError
from registry.host.gpu import read_gpu
from registry.records import Backend, GpuTarget
from tasks.backends.ort import cuda
from tasks.backends.ort.cuda import OrtCudaSession
from tasks.measurement.gpu_load import open_gpu_probe
from tasks.measurement.latency import Probes, interleave
from tasks.measurement.windows import LatencyPlan
from tasks.model_tasks.contract import Feed
from tasks.verdicts.sequential import bound_ratio, list_looks

TARGET = GpuTarget("cuda", Backend.ONNXRUNTIME_CUDA)
BATCHES = (1, 32, 128)
SEQUENCE = 128
# Data sheet "NVIDIA H100 Tensor Core GPU", SXM: dense TFLOP/s by type of product, and TB/s of memory.
PEAK_TFLOPS = {"fp32": 67.0, "fp16": 989.0, "bf16": 989.0, "int8": 1979.0}
BYTES_PER_WEIGHT = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
BANDWIDTH_TBPS = 3.35


class TorchPeer:
    """A BERT in PyTorch that takes and returns host arrays, as an engine does."""

    def __init__(self, checkpoint: Path, dtype: str, *, compiled: bool) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        self._torch = torch
        torch.backends.cuda.matmul.allow_tf32 = False
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
        self._model: Callable[..., Any] = model.eval().cuda()
        if compiled:
            torch.compiler.reset()  # another batch: a graph of its own, and not one with dynamic shapes
            self._model = torch.compile(self._model, mode="reduce-overhead", dynamic=False)

    def run(self, feed: Mapping[str, Any]) -> list[Any]:
        """Return the logits [batch, classes] of a feed, on the host."""
        with self._torch.inference_mode():
            inputs = {name: self._torch.from_numpy(array).cuda(non_blocking=True) for name, array in feed.items()}
            return [self._model(**inputs).logits.float().cpu().numpy()]


def main() -> None:
    options = parse_options()
    engines = dict(each.split("=", 1) for each in options.engines)
    print(f"{read_gpu()}; ONNX Runtime {cuda.version()}; sequence {SEQUENCE}")
    rows = []
    for batch in BATCHES:
        measured = measure_batch(options.checkpoint, engines, batch)
        print_rows(measured)
        rows += measured
    if options.same:
        rows.append(compare_same(list(engines.values())[-1], options.same))
        print(json.dumps(rows[-1], indent=1))
    if options.results:
        options.results.write_text(json.dumps(rows, indent=1))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("engines", nargs="+", metavar="PRECISION=ENGINE")
    parser.add_argument("--same", type=int, default=0, metavar="N")
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


def measure_batch(checkpoint: Path, engines: Mapping[str, str], batch: int) -> list[dict[str, Any]]:
    """Time every engine, plain and with CUDA graphs, and the peers, at one batch."""
    feed = make_feed(open_session(next(iter(engines.values()))), batch)
    sessions: dict[str, Any] = {}
    for precision, engine in engines.items():
        sessions[precision] = open_session(engine)
        try:
            sizes = {"batch_size": batch, "sequence_length": SEQUENCE}
            sessions[f"{precision}, graph"] = warm(open_session(engine, sizes), feed)
        except EngineryError as error:
            print(f"{precision} with a CUDA graph, batch {batch}: {str(error)[:300]}", file=sys.stderr)
    for name, dtype, compiled in (
        ("torch eager fp32", "float32", False),
        ("torch eager fp16", "float16", False),
        ("torch compiled fp16", "float16", True),
    ):
        sessions[name] = warm(TorchPeer(checkpoint, dtype, compiled=compiled), feed)
    plan = LatencyPlan(windows=10, iterations=10, warmup=5, sizes=(("batch", batch), ("sequence", SEQUENCE)))
    times = interleave(sessions, feed, plan)
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    return [describe(name, session, feed, batch, medians) for name, session in sessions.items()]


def describe(name: str, session: Any, feed: Feed, batch: int, medians: Mapping[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "engine": name,
        "batch": batch,
        "p50_ms": 1000 * medians[name],
        "over fp32": medians["fp32"] / medians[name],
        "over torch eager fp16": medians["torch eager fp16"] / medians[name],
    }
    if isinstance(session, OrtCudaSession):
        phases = []
        for _ in range(30):
            session.run(feed)
            phases.append(session.phase_times())
        for phase in ("upload", "compute", "download"):
            row[f"{phase}_ms"] = 1000 * statistics.median(getattr(each, f"{phase}_seconds") for each in phases)
        if batch == 1:
            row["cold_ms"] = 1000 * time_cold(session, feed)
    if (precision := name.removesuffix(", graph")) in PEAK_TFLOPS:
        row["floor_ms"] = floor_ms(precision, batch)
    return row


def time_cold(session: OrtCudaSession, feed: Feed) -> float:
    """Return the median seconds of a call whose weights are not in the L2 cache."""
    from cuda.bindings import runtime

    size, seconds = 256_000_000, []
    _, address = runtime.cudaMalloc(size)
    for value in range(30):
        runtime.cudaMemset(address, value, size)
        runtime.cudaDeviceSynchronize()
        started = time.perf_counter()
        session.run(feed)
        seconds.append(time.perf_counter() - started)
    runtime.cudaFree(address)
    return statistics.median(seconds)


def compare_same(engine: str, comparisons: int) -> dict[str, Any]:
    """Compare an engine with itself, and say how often it is called different and how wide the interval is."""
    sessions: dict[str, Any] = {name: open_session(engine) for name in "AB"}
    feed = make_feed(sessions["A"], 8)
    probes = Probes(gpu=open_gpu_probe() or Probes.gpu)
    called, peer, widths, seconds = Counter[str](), list[float](), dict[int, list[float]](), list[float]()
    dropped = measured = 0
    for _ in range(comparisons):
        peer.append(compare_means(sessions, feed))
        verdict, windows, taken = decide(sessions, feed, 1.5, probes)
        called[verdict] += 1
        seconds.append(taken)
        dropped, measured = dropped + int(windows.disturbed.sum()), measured + windows.count
        own, baseline = (np.median(windows.times[name], axis=1) for name in "BA")
        for look in list_looks(FIRST):
            if look <= windows.count:
                _, low, high = bound_ratio(baseline[:look], own[:look], windows.seconds[:look])
                widths.setdefault(look, []).append(high / low - 1)
    return {
        "engine": "with itself",
        "batch": 8,
        "comparisons": comparisons,
        "called different": (called["faster"] + called["slower"]) / comparisons,
        "seconds each, median": statistics.median(seconds),
        "interval's width by windows": {look: statistics.median(each) for look, each in widths.items()},
        "windows dropped": f"{dropped} of {measured}",
        "peer: means more than 2 % apart": float(np.mean(np.abs(np.log(peer)) > 0.02)),
        "peer: means more than 5 % apart": float(np.mean(np.abs(np.log(peer)) > 0.05)),
    }


def floor_ms(precision: str, batch: int) -> float:
    """Return the least time of a BERT-base: its 85 million weights of layers, and attention's two products."""
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    products = 2 * batch * SEQUENCE * (weights + 12 * 2 * SEQUENCE * 768)
    return 1000 * max(
        products / (PEAK_TFLOPS[precision] * 1e12), weights * BYTES_PER_WEIGHT[precision] / (BANDWIDTH_TBPS * 1e12)
    )


def make_feed(session: OrtCudaSession, batch: int) -> Feed:
    tokens = np.random.default_rng(0).integers(1000, 20_000, (batch, SEQUENCE))
    values = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    return {name: values[name] for name in session.input_names}


def open_session(engine: str, cuda_graph_of: Mapping[str, int] | None = None) -> OrtCudaSession:
    path = Path(engine)
    version = cuda.version()
    return cuda.open_session(
        path, file_sha256(path), target=TARGET, backend_version=version, cuda_graph_of=cuda_graph_of
    )


def warm(session: Any, feed: Feed) -> Any:
    """Run what compiles or captures until it has."""
    for _ in range(5):
        session.run(feed)
    return session


def print_rows(rows: list[dict[str, Any]]) -> None:
    columns = ("engine", "batch", "p50_ms", "upload_ms", "compute_ms", "download_ms", "cold_ms", "floor_ms",
               "over fp32", "over torch eager fp16")  # fmt: skip
    print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        cells = (f"{row[name]:.3f}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in columns)
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
