"""The table of precisions agrees with what the installed libraries build."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from registry.digest import file_sha256
from registry.errors import BuildError
from registry.records import AxisRange, Backend, GpuTarget, Precision, ShapeProfile
from tasks.backends import BACKENDS, BuildInputs
from tasks.backends.precisions import CAPABILITIES, RULES
from tests.support.onnx_graphs import save_graph

PROFILE = ShapeProfile.of(batch=AxisRange(1, 2, 4), sequence=AxisRange(8, 16, 32))
RTX_CELLS = list(product(CAPABILITIES[Backend.TENSORRT_RTX], Precision))


def target(backend: Backend, capability: str | None = None) -> GpuTarget:
    return GpuTarget("some-gpu", backend, capability)


def supports(backend: Backend, precision: Precision, capability: str | None = None) -> str | None:
    return BACKENDS[backend].supports(precision, target(backend, capability))


def test_every_backend_and_precision_has_a_rule() -> None:
    assert set(RULES) == set(product(Backend, Precision))
    assert all(rule.since or rule.reason for rule in RULES.values())


@pytest.mark.parametrize(("capability", "precision"), RTX_CELLS)
def test_tensorrt_rtx_builds_what_the_table_says(
    capability: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install -e .[trt-rtx]")
    reason = supports(Backend.TENSORRT_RTX, precision, capability)
    monkeypatch.setattr("tasks.backends.trt.builder.why_unsupported", lambda *_: None)
    refused = ""
    try:
        BACKENDS[Backend.TENSORRT_RTX].build(
            BuildInputs(save_graph(tmp_path, precision), target(Backend.TENSORRT_RTX, capability), (PROFILE,), 2**28),
            into=tmp_path,
            on_progress=lambda *_: True,
        )
    except BuildError as refusal:
        refused = str(refusal)
    if refused:
        assert reason, f"the table says yes; the builder says: {refused}"
    else:
        assert reason is None, f"the builder says yes; the table says: {reason}"


@pytest.mark.parametrize("precision", [p for p in Precision if RULES[Backend.ONNXRUNTIME, p].since])
def test_onnxruntime_runs_what_the_table_says(precision: Precision, tmp_path: Path) -> None:
    build = BACKENDS[Backend.ONNXRUNTIME].build
    reference, engine = (
        build(
            BuildInputs(save_graph(tmp_path / used, used), target(Backend.ONNXRUNTIME), (PROFILE,), 0),
            into=tmp_path / used,
            on_progress=lambda *_: True,
        )
        for used in (Precision.FP32, precision)
    )
    x = np.random.default_rng(1).uniform(-1, 1, (2, 8, 64)).astype(np.float32)
    expected, actual = (run_engine(built.path, x) for built in (reference, engine))
    assert np.corrcoef(expected.ravel(), actual.ravel())[0, 1] > 0.99


def run_engine(engine: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = BACKENDS[Backend.ONNXRUNTIME].open_session(
        engine, file_sha256(engine), target=target(Backend.ONNXRUNTIME), backend_version="any"
    )
    return session.run({"x": x})[0]


@pytest.mark.parametrize(
    ("backend", "capability", "precision", "words"),
    [
        (Backend.TENSORRT_RTX, "9.0", Precision.FP16, "does not support compute capability 9.0"),
        (Backend.TENSORRT_RTX, "7.5", Precision.FP32, "for compute capability 8.0 and later"),
        (Backend.TENSORRT, "8.6", Precision.FP8, "for compute capability 8.9 and later .from documentation"),
        (Backend.TENSORRT, "7.5", Precision.BF16, "for compute capability 8.0 and later"),
        (Backend.TENSORRT, "9.0", Precision.INT8_DYNAMIC, "no DynamicQuantizeLinear and no MatMulInteger"),
        (Backend.ONNXRUNTIME, None, Precision.FP16, "never faster than fp32"),
    ],
)
def test_refusal_says_why(backend: Backend, capability: str | None, precision: Precision, words: str) -> None:
    reason = supports(backend, precision, capability)
    assert reason is not None
    assert re.search(words, reason)


def test_capability_ten_is_newer_than_nine() -> None:
    assert supports(Backend.TENSORRT, Precision.FP8, "10.0") is None
