"""Real builds by TensorRT for RTX, which needs no GPU to build."""

import multiprocessing
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from registry.digest import file_sha256
from registry.errors import BadInput, BuildError, DigestMismatch, Incompatible
from registry.records import AxisRange, Backend, EngineBuild, GpuTarget, OnnxArtifact, Precision, ShapeProfile
from tasks.backends import BACKENDS, BuildInputs, open_engine
from tasks.backends.build import Options, build_engine, build_key
from tasks.backends.contract import TimingFolder
from tasks.backends.trt.builder import profile_shapes
from tasks.execution.progress import OnProgress
from tests.support.onnx_graphs import describe, save_graph

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install -e .[trt-rtx]")

PROFILE = ShapeProfile.of(batch=AxisRange(1, 2, 4), sequence=AxisRange(8, 16, 32))


def rtx(capability: str) -> GpuTarget:
    return GpuTarget("some-gpu", Backend.TENSORRT_RTX, capability, work_pool="gpus")


SOME_GPU = rtx("8.9")


def proceed(phase: str, fraction: float) -> bool:
    return True


def build(
    graph: OnnxArtifact,
    into: Path,
    *,
    target: GpuTarget = SOME_GPU,
    profiles: tuple[ShapeProfile, ...] = (PROFILE,),
    on_progress: OnProgress = proceed,
) -> EngineBuild:
    return build_engine(BuildInputs(graph, target, profiles, 2**28), into=into, on_progress=on_progress)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_engine_is_built_for_its_target(precision: Precision, capability: str, tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", precision)
    phases: list[float] = []

    def watch(phase: str, fraction: float) -> bool:
        phases.append(fraction)
        return True

    built = build(
        graph,
        tmp_path / "engine",
        target=rtx(capability),
        on_progress=watch,
    )
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["engine.plan"]
    assert built.path.stat().st_size == built.size_bytes > 1000
    assert built.digest == file_sha256(built.path)
    assert (built.onnx_digest, built.inputs, built.outputs) == (graph.digest, graph.inputs, graph.outputs)
    assert phases
    assert all(0 <= fraction <= 1 for fraction in phases)


def test_two_profiles_and_external_data_build(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", Precision.FP32, external="weights.bin")
    assert (
        build(
            graph,
            tmp_path,
            profiles=(PROFILE, ShapeProfile.of(batch=AxisRange(4, 8, 16), sequence=AxisRange(8, 16, 32))),
        ).size_bytes
        > 1000
    )


def test_dynamic_input_without_a_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="inputs x have dynamic axes: give an optimization profile"):
        build(save_graph(tmp_path / "onnx", Precision.FP32), tmp_path / "engine", profiles=())
    assert not list((tmp_path / "engine").iterdir())


def test_cancelled_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="was cancelled"):
        build(save_graph(tmp_path / "onnx", Precision.FP32), tmp_path / "engine", on_progress=lambda *_: False)
    assert not list((tmp_path / "engine").iterdir())


def test_ctrl_c_ends_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(phase: str, fraction: float) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(save_graph(tmp_path / "onnx", Precision.FP32), tmp_path / "engine", on_progress=interrupt)
    assert not list((tmp_path / "engine").iterdir())
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("span", [AxisRange(4, 2, 8), AxisRange(1, 9, 8), AxisRange(0, 1, 8)])
def test_profile_out_of_order_is_refused(span: AxisRange, tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", Precision.FP32)
    with pytest.raises(BadInput, match="1 <= min <= opt <= max"):
        build(graph, tmp_path, profiles=(ShapeProfile.of(batch=AxisRange(1, 2, 4), sequence=span),))


def test_profile_fills_axes_by_their_names_and_keeps_the_rest() -> None:
    assert profile_shapes("x", ("batch", 3, "sequence"), PROFILE) == ((1, 3, 8), (2, 3, 16), (4, 3, 32))
    assert profile_shapes("x", ("sequence_length", "batch_size"), PROFILE) == ((8, 1), (16, 2), (32, 4))
    assert profile_shapes("x", ("batch", 3), PROFILE) == ((1, 3), (2, 3), (4, 3))
    assert profile_shapes("x", (5,), PROFILE) == ((5,), (5,), (5,))


def test_profile_has_as_many_axes_as_the_graph() -> None:
    profile = ShapeProfile.of(batch=AxisRange(1, 2, 4), height=AxisRange(32, 64, 96), width=AxisRange(8, 16, 24))
    assert profile_shapes("x", ("batch", 3, "height", "width"), profile) == (
        (1, 3, 32, 8),
        (2, 3, 64, 16),
        (4, 3, 96, 24),
    )


def test_axis_that_the_profile_lacks_is_named() -> None:
    with pytest.raises(BuildError, match="input x has the dynamic axis height, and the profile has batch, sequence"):
        profile_shapes("x", ("batch", "height"), PROFILE)


def test_node_that_the_parser_refuses_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("StringNormalizer", ["x"], ["y"], name="lower-the-case")]
    x, y = (helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in "xy")
    graph = helper.make_graph(nodes, "text", [x], [y])
    onnx.save(helper.make_model(graph, ir_version=10), str(tmp_path / "model.onnx"))
    artifact = replace(describe(tmp_path, Precision.FP32))
    with pytest.raises(BuildError, match="cannot parse") as caught:
        build(artifact, tmp_path / "engine")
    assert re.search("lower-the-case|string", str(caught.value), re.IGNORECASE)


def test_dynamically_quantized_node_is_named_by_the_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.backends.trt.builder.why_unsupported", lambda *_: None)
    graph = save_graph(tmp_path, Precision.INT8_DYNAMIC)
    with pytest.raises(BuildError, match=r"'quantize_x' \(DynamicQuantizeLinear\).*'matmul' \(MatMulInteger\)"):
        BACKENDS[Backend.TENSORRT_RTX].build(
            BuildInputs(graph, SOME_GPU, (PROFILE,), 2**28), into=tmp_path, on_progress=proceed
        )


def test_changed_graph_is_refused_before_the_build(tmp_path: Path) -> None:
    graph = save_graph(tmp_path, Precision.FP32)
    graph.path.write_bytes(graph.path.read_bytes()[:-1] + b"?")
    with pytest.raises(DigestMismatch):
        build(graph, tmp_path / "engine")


def test_build_key_follows_what_decides_the_engine_and_not_its_place(tmp_path: Path) -> None:
    graph = save_graph(tmp_path, Precision.FP32)

    inputs = BuildInputs(graph, SOME_GPU, (PROFILE,), 1)

    def key(version: str = "1", options: Options = (), **changes: Any) -> str:
        return build_key(replace(inputs, **changes), backend_version=version, options=options)

    same = [
        key(),
        key(onnx=replace(graph, directory=Path("/elsewhere"))),
        key(target=replace(SOME_GPU, name="other")),
        key(timing=TimingFolder(tmp_path)),
    ]
    other = [
        key(onnx=replace(graph, digest="0" * 64)),
        key(target=rtx("8.6")),
        key(profiles=()),
        key(workspace_bytes=2),
        key(version="2"),
        key(options=(("level", "5"),)),
    ]
    assert len(set(same)) == 1
    assert len({*same, *other}) == 1 + len(other)


def test_engine_is_refused_before_tensorrt_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(save_graph(tmp_path / "onnx", Precision.FP32), tmp_path / "engine")
    monkeypatch.setattr("tasks.backends.trt.builder.load_engine", lambda *_, **__: pytest.fail("it was deserialised"))
    monkeypatch.setattr("tasks.backends.trt.builder.local_compute_capability", lambda: "8.6")
    with pytest.raises(Incompatible, match=r"compute capability 8.9 .this machine's GPU has 8.6.*pool gpus"):
        open_engine(built)
    with pytest.raises(Incompatible, match=r"was built by tensorrt_rtx 0\.1"):
        open_engine(replace(built, backend_version="0.1"))
    engine_bytes = bytearray(built.path.read_bytes())
    engine_bytes[len(engine_bytes) // 2] ^= 1
    built.path.write_bytes(engine_bytes)
    with pytest.raises(DigestMismatch):
        open_engine(built)
