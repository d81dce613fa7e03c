"""ONNX Runtime runs exactly the built bytes, and unsafe files are refused before it reads them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data

from registry.digest import digest_of, record_file
from registry.errors import BadInput, BuildError, DigestMismatch, Incompatible
from registry.records import AxisRange, Backend, EngineBuild, GpuTarget, OnnxArtifact, Precision, ShapeProfile
from tasks.backends import BACKENDS, BuildInputs, open_engine
from tasks.backends.build import build_engine
from tasks.backends.contract import Array
from tasks.backends.ort import cpu, cuda, loading
from tasks.graphs.external_data import check_external_data
from tests.support.onnx_graphs import save_graph

PROFILE = ShapeProfile.of(batch=AxisRange(1, 2, 4), sequence=AxisRange(8, 16, 32))
CPU = GpuTarget("cpu", Backend.ONNXRUNTIME)
CUDA = GpuTarget("cuda", Backend.ONNXRUNTIME_CUDA, work_pool="gpu-any")


def build(graph: OnnxArtifact, into: Path) -> EngineBuild:
    return build_engine(BuildInputs(graph, CPU, (PROFILE,), 0), into=into, on_progress=lambda *_: True)


def point_weights_at(graph: OnnxArtifact, location: str) -> None:
    model = onnx.load(str(graph.path), load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.raw_data = b"\0"  # the call below wants some
        set_external_data(tensor, location)
        tensor.ClearField("raw_data")
    graph.path.write_bytes(model.SerializeToString())


def test_engine_is_the_exact_graph_and_runs(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", Precision.FP32)
    built = build(graph, tmp_path / "engine")
    assert built.path.read_bytes() == graph.path.read_bytes()
    session = open_engine(built)
    assert (session.input_names, session.output_names) == (("x",), ("y",))
    (y,) = session.run({"x": np.zeros((2, 3, 64), np.float32)})
    assert y.shape == (2, 3, 64)
    assert np.all(y == 0.5)


def test_external_data_is_embedded(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", Precision.FP32, external="weights.bin")
    x = {"x": np.ones((1, 2, 64), np.float32)}
    inside = build(save_graph(tmp_path / "inside", Precision.FP32), tmp_path / "engine-inside")
    outside = build(graph, tmp_path / "engine")
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["engine.onnx"]
    assert np.array_equal(open_engine(outside).run(x)[0], open_engine(inside).run(x)[0])


def test_graph_too_large_for_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.backends.ort.loading.LARGEST_FILE_BYTES", 1000)
    with pytest.raises(BuildError, match="one ONNX file holds at most"):
        build(save_graph(tmp_path / "onnx", Precision.FP32, external="weights.bin"), tmp_path / "engine")


@pytest.mark.parametrize("location", ["/etc/hostname", "../outside.bin", "a/../../outside.bin", "C:\\x", "", "."])
def test_external_data_outside_of_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(10**5))
    graph = save_graph(tmp_path / "onnx", Precision.FP32, external="weights.bin")
    point_weights_at(graph, location)
    with pytest.raises(BadInput, match="external data"):
        check_external_data(graph.path)


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    graph = save_graph(tmp_path, Precision.FP32, external="weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BadInput, match="is missing"):
        check_external_data(graph.path)


@pytest.mark.parametrize(("link", "words"), [(os.symlink, "symbolic link"), (os.link, "hard link")])
def test_linked_external_data_is_refused(link: object, words: str, tmp_path: Path) -> None:
    assert callable(link)
    graph = save_graph(tmp_path / "onnx", Precision.FP32, external="weights.bin")
    weights = graph.directory / "weights.bin"
    weights.rename(tmp_path / "elsewhere.bin")
    link(tmp_path / "elsewhere.bin", weights)
    with pytest.raises(BadInput, match=words):
        check_external_data(graph.path)


def test_external_data_through_a_linked_folder_is_refused(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", Precision.FP32, external="weights.bin")
    (tmp_path / "real").mkdir()
    (graph.directory / "weights.bin").rename(tmp_path / "real/weights.bin")
    (graph.directory / "linked").symlink_to(tmp_path / "real")
    point_weights_at(graph, "linked/weights.bin")
    with pytest.raises(BadInput, match="symbolic link"):
        check_external_data(graph.path)


def test_external_data_that_the_artifact_does_not_list_is_refused(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", Precision.FP32, external="weights.bin")
    files = (record_file(graph.path, root=graph.directory),)
    with pytest.raises(BadInput, match=r"weights.bin, which its artifact does not list"):
        build(replace(graph, files=files, digest=digest_of(files)), tmp_path / "engine")


def test_flipped_byte_is_refused_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(save_graph(tmp_path / "onnx", Precision.FP32), tmp_path / "engine")
    engine_bytes = bytearray(built.path.read_bytes())
    engine_bytes[-100] ^= 1
    built.path.write_bytes(engine_bytes)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(DigestMismatch, match="sha256 is"):
        open_engine(built)


def test_bytes_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    built = build(save_graph(tmp_path / "onnx", Precision.FP32), tmp_path / "engine")
    built.path.write_bytes(b"not a graph")
    digest = record_file(built.path, root=tmp_path).sha256
    with pytest.raises(Incompatible, match="cannot load it"):
        open_engine(replace(built, digest=digest))


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"z": np.zeros((1, 1, 64), np.float32)},
        {"x": np.zeros((1, 1, 3), np.float32)},
        {"x": np.zeros((1, 1, 64), np.int64)},
    ],
)
def test_feed_that_does_not_fit_is_refused(feed: dict[str, Array], tmp_path: Path) -> None:
    session = open_engine(build(save_graph(tmp_path / "onnx", Precision.FP32), tmp_path / "engine"))
    with pytest.raises(BadInput):
        session.run(feed)


def test_cancelled_build_leaves_nothing(tmp_path: Path) -> None:
    graph = save_graph(tmp_path / "onnx", Precision.FP32)
    into = tmp_path / "engine"
    with pytest.raises(BuildError, match="was cancelled"):
        build_engine(BuildInputs(graph, CPU, (PROFILE,), 0), into=into, on_progress=lambda *_: False)
    assert not list(into.iterdir())


def test_precision_that_gains_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="never faster than fp32"):
        build(save_graph(tmp_path / "onnx", Precision.FP16), tmp_path / "engine")


def test_threads_of_an_engine_stop_with_its_call(tmp_path: Path) -> None:
    session = open_engine(build(save_graph(tmp_path / "onnx", Precision.FP32), tmp_path / "engine"))
    assert isinstance(session, cpu.OrtSession)
    options = session.session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_engine_for_any_gpu_is_the_exact_graph_and_builds_without_one(tmp_path: Path) -> None:
    if cuda.can_run(CUDA) is None:
        pytest.skip("this machine has a GPU: tests/gpu/test_ort_gpu.py runs the engine")
    graph = save_graph(tmp_path / "onnx", Precision.FP16)
    inputs = BuildInputs(graph, CUDA, (PROFILE,), 0)
    built = build_engine(inputs, into=tmp_path / "engine", on_progress=lambda *_: True)
    assert built.path.read_bytes() == graph.path.read_bytes()
    with pytest.raises(Incompatible, match=r"needs .*NVIDIA GPU.*run it on a worker of pool gpu-any"):
        open_engine(built)


def test_two_packages_of_onnxruntime_are_told_apart_and_refused_together(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime-gpu"}
    monkeypatch.setattr("tasks.backends.ort.loading._is_installed", installed.__contains__)
    assert loading.has_gpu_package()
    assert loading.can_build(CPU) is None
    installed.add("onnxruntime")
    assert not loading.has_gpu_package()
    assert "overwrite each other's files: pip uninstall both" in str(loading.can_build(CPU))
    with pytest.raises(Incompatible, match="overwrite each other's files: pip uninstall both"):
        loading.version()
    installed.clear()
    assert "pip install enginery[cpu]" in str(loading.can_build(CUDA))
    with pytest.raises(Incompatible, match=r"pip install enginery\[cpu\]"):
        loading.version()


def test_importing_the_backends_imports_no_vendor_library() -> None:
    heavy = "{'onnx', 'onnxruntime', 'torch', 'tensorrt', 'tensorrt_rtx'}"
    code = f"import sys, tasks.backends.build; print(*(sys.modules.keys() & {heavy}))"
    root = Path(__file__).parents[4]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True).stdout == b"\n"


def test_machine_without_the_gpu_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    target = GpuTarget("l4", Backend.TENSORRT, "8.9", "NVIDIA L4", "gpu-l4")
    monkeypatch.setattr("tasks.backends.trt.builder.find_spec", lambda _: None)
    reason = BACKENDS[Backend.TENSORRT].can_build(target)
    assert reason == (
        "needs the tensorrt package and a GPU: NVIDIA L4; run it on a worker of pool gpu-l4 that has enginery[trt]"
    )


@pytest.mark.parametrize("backend", [CPU, GpuTarget("rtx", Backend.TENSORRT_RTX, "8.9")])
def test_a_profile_of_an_axis_that_the_graph_fixes_is_refused_by_name(tmp_path: Path, backend: GpuTarget) -> None:
    if backend is not CPU:
        pytest.importorskip("tensorrt_rtx")
    graph = save_graph(tmp_path / "onnx", Precision.FP32)
    fixed = replace(graph, inputs=tuple(replace(tensor, shape=("batch", 8, 64)) for tensor in graph.inputs))
    with pytest.raises(BadInput, match=r"the profile has the axis sequence, which no input .* \(x \[batch, 8, 64\]\)"):
        build_engine(BuildInputs(fixed, backend, (PROFILE,), 2**28), into=tmp_path / "e", on_progress=lambda *_: True)
    assert not (tmp_path / "e").exists()
