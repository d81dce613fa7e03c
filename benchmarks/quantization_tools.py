"""The quantizers that benchmarks/quantization.py measures: each makes `TOOL.onnx` of `fp32.onnx` and `rows.npz`."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization.calibrate import CalibrationDataReader

Feeds = list[dict[str, NDArray[Any]]]


def read_feeds(file: Path) -> Feeds:
    feeds: dict[int, dict[str, NDArray[Any]]] = {}
    with np.load(file, allow_pickle=False) as stored:
        for key in stored.files:
            index, name = key.split("/", 1)
            feeds.setdefault(int(index), {})[name] = stored[key]
    return [feeds[index] for index in sorted(feeds)]


def run_tool(tool: str, folder: Path, report: Path) -> None:
    feeds = read_feeds(folder / "rows.npz")
    work = (TOOLS | {"bare fp32 pass": prepare_bare_pass})[tool](folder / "fp32.onnx", feeds, folder / f"{tool}.onnx")
    started, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    report.write_text(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": read_peak_rss() / 1e6}))


def read_peak_rss() -> int:
    """Return bytes. Not by getrusage, whose maximum is inherited from the process that forked this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


Work = Callable[[], None]


def prepare_bare_pass(model: Path, feeds: Feeds, _into: Path) -> Work:
    def work() -> None:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        for feed in feeds:
            session.run(None, feed)

    return work


def prepare_statistics(model: Path, feeds: Feeds, _into: Path) -> Work:
    """Make one streaming pass and the ranges of all methods for every tensor, but no graph."""
    from tasks.calibration.collect import calibrate
    from tasks.calibration.ranges import find_clips

    def work() -> None:
        for statistics in calibrate(model, feeds).activations.values():
            find_clips(statistics.histogram, statistics.amax)

    return work


def prepare_enginery(**plan: Any) -> Callable[[Path, Feeds, Path], Work]:
    def prepare(model: Path, feeds: Feeds, into: Path) -> Work:
        import shutil
        import tempfile

        from registry.digest import digest_of, record_file
        from registry.records import OnnxArtifact, Precision
        from tasks.quantization.quantize import quantize
        from tasks.quantization.request import Int8Plan

        files = (record_file(model, root=model.parent),)
        source = OnnxArtifact(model.name, files, digest_of(files), Precision.FP32, 18, (), (), directory=model.parent)

        def work() -> None:
            with tempfile.TemporaryDirectory() as scratch:
                quantize(
                    source,
                    Precision.INT8,
                    feeds,
                    calibration_set_digest="0" * 64,
                    into=Path(scratch) / "int8",
                    plan=Int8Plan(**plan),
                )
                shutil.copy(Path(scratch) / "int8" / "model.onnx", into)

        return work

    return prepare


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The rows in the caller's batches, through the interface of the other quantizers."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._next: Iterator[dict[str, NDArray[Any]]] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next batch."""
        return next(self._next, None)

    def get_first(self) -> dict[str, NDArray[Any]]:
        """Return the first batch."""
        return self._feeds[0]

    def rewind(self) -> None:
        """Start over."""
        self._next = iter(self._feeds)


def pad_feeds(feeds: Feeds) -> Feeds:
    """Pad all rows to one length: ONNX Runtime's histograms cannot stack ragged batches.

    The padding enters its statistics.
    """
    longest = max(next(iter(feed.values())).shape[1] for feed in feeds)
    whole = [feed for feed in feeds if len(next(iter(feed.values()))) == len(next(iter(feeds[0].values())))]
    return [
        {
            name: np.pad(column, ((0, 0), (0, longest - column.shape[1]), *[(0, 0)] * (column.ndim - 2)))
            for name, column in feed.items()
        }
        for feed in whole
    ]


def prepare_onnxruntime(method: str) -> Callable[[Path, Feeds, Path], Work]:
    """Use its best settings for TensorRT: MatMul, Gemm and Conv, symmetric, per channel, outputs not quantized."""

    def prepare(model: Path, feeds: Feeds, into: Path) -> Work:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        feeds = feeds if method == "MinMax" else pad_feeds(feeds)

        def work() -> None:
            prepared = into.with_suffix(".prepared.onnx")
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                into,
                Reader(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[method],
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm", "Conv"],
                },
            )

        return work

    return prepare


def prepare_modelopt(method: str) -> Callable[[Path, Feeds, Path], Work]:
    """Let ModelOpt place Q/DQ; fp32 around it, as in the other graphs."""

    def prepare(model: Path, feeds: Feeds, into: Path) -> Work:
        from modelopt.onnx.quantization import quantize

        def work() -> None:
            quantize(
                str(model),
                quantize_mode="int8",
                calibration_method=method,
                calibration_data_reader=Reader(feeds),
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                output_path=str(into),
                log_level="ERROR",
            )

        return work

    return prepare


TOOLS: dict[str, Callable[[Path, Feeds, Path], Work]] = {
    "enginery, statistics only": prepare_statistics,
    "enginery": prepare_enginery(),
    "enginery, GPTQ": prepare_enginery(compensate=True),
    "enginery, no smoothing": prepare_enginery(smooth=False),
    "onnxruntime min-max": prepare_onnxruntime("MinMax"),
    "onnxruntime entropy": prepare_onnxruntime("Entropy"),
    "modelopt max": prepare_modelopt("max"),
    "modelopt entropy": prepare_modelopt("entropy"),
}
