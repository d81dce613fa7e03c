"""What benchmarks/quantization.py measures, each in a process of its own: `fp32.onnx` and `rows.npz` to `TOOL.onnx`."""

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
            at, name = key.split("/", 1)
            feeds.setdefault(int(at), {})[name] = stored[key]
    return [feeds[at] for at in sorted(feeds)]


def run_tool(tool: str, folder: Path, report: Path) -> None:
    feeds = read_feeds(folder / "rows.npz")
    work = (TOOLS | {"bare fp32 pass": bare_pass})[tool](folder / "fp32.onnx", feeds, folder / f"{tool}.onnx")
    started, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    report.write_text(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_rss() / 1e6}))


def peak_rss() -> int:
    """Bytes. Not getrusage: its maximum is inherited from the process that forked this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


Work = Callable[[], None]


def bare_pass(model: Path, feeds: Feeds, _made: Path) -> Work:
    def work() -> None:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        for feed in feeds:
            session.run(None, feed)

    return work


def statistics_only(model: Path, feeds: Feeds, _made: Path) -> Work:
    """One streaming pass and the ranges of all methods for every tensor: no graph."""
    from tasks.calibration.collect import calibrate
    from tasks.calibration.ranges import clips

    def work() -> None:
        for each in calibrate(model, feeds).activations.values():
            clips(each.histogram, each.amax)

    return work


def enginery(**plan: Any) -> Callable[[Path, Feeds, Path], Work]:
    def prepare(model: Path, feeds: Feeds, made: Path) -> Work:
        import shutil
        import tempfile

        from registry.digest import digest_of, record_file
        from registry.records import OnnxArtifact, Precision
        from tasks.quantization.quantize import quantize
        from tasks.quantization.request import Int8Plan

        files = (record_file(model, root=model.parent),)
        source = OnnxArtifact(model.name, files, digest_of(files), Precision.FP32, 18, (), (), directory=model.parent)

        def work() -> None:
            with tempfile.TemporaryDirectory() as into:
                quantize(
                    source,
                    Precision.INT8,
                    feeds,
                    calibration_set_digest="0" * 64,
                    into=Path(into) / "made",
                    plan=Int8Plan(**plan),
                )
                shutil.copy(Path(into) / "made" / "model.onnx", made)

        return work

    return prepare


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The rows in the batches that the caller made, as the peers read them."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds
        self._next: Iterator[dict[str, NDArray[Any]]] = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Give the next batch."""
        return next(self._next, None)

    def get_first(self) -> dict[str, NDArray[Any]]:
        """Give the first batch."""
        return self._feeds[0]

    def rewind(self) -> None:
        """Start over."""
        self._next = iter(self._feeds)


def padded(feeds: Feeds) -> Feeds:
    """All rows at one length: ONNX Runtime's histograms cannot stack ragged batches. Padding enters its statistics."""
    longest = max(next(iter(feed.values())).shape[1] for feed in feeds)
    whole = [feed for feed in feeds if len(next(iter(feed.values()))) == len(next(iter(feeds[0].values())))]
    return [
        {name: np.pad(each, ((0, 0), (0, longest - each.shape[1]))) for name, each in feed.items()} for feed in whole
    ]


def onnxruntime_static(method: str) -> Callable[[Path, Feeds, Path], Work]:
    """Its best settings for TensorRT: MatMul, Gemm and Conv, symmetric, per channel, outputs left alone."""

    def prepare(model: Path, feeds: Feeds, made: Path) -> Work:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        feeds = feeds if method == "MinMax" else padded(feeds)

        def work() -> None:
            prepared = made.with_suffix(".prepared.onnx")
            quant_pre_process(model, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                made,
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


def modelopt(method: str) -> Callable[[Path, Feeds, Path], Work]:
    """ModelOpt's own placement of Q/DQ; fp32 around it, as in the other graphs."""

    def prepare(model: Path, feeds: Feeds, made: Path) -> Work:
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
                output_path=str(made),
                log_level="ERROR",
            )

        return work

    return prepare


TOOLS: dict[str, Callable[[Path, Feeds, Path], Work]] = {
    "enginery, statistics only": statistics_only,
    "enginery": enginery(),
    "enginery, GPTQ": enginery(compensate=True),
    "enginery, no smoothing": enginery(smooth=False),
    "onnxruntime min-max": onnxruntime_static("MinMax"),
    "onnxruntime entropy": onnxruntime_static("Entropy"),
    "modelopt max": modelopt("max"),
    "modelopt entropy": modelopt("entropy"),
}
