"""Bundles that Triton tests place: a tiny real text classifier for the CPU, and plans that only look like engines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from registry.bundle.manifest import FORMAT_VERSION, MANIFEST_FILE, verify_bundle, write_manifest
from registry.digest import digest_of, record_tree
from registry.records import (
    AxisRange,
    Backend,
    EngineBuild,
    EngineManifest,
    GpuTarget,
    ModelSource,
    Precision,
    ShapeProfile,
    Tensor,
    Verdict,
)
from registry.triton.model import WarmupRow
from registry.triton.repository import VerifiedBundle
from registry.triton.warmup import ROWS_FILE, write_rows
from tasks.bundle.python_model import make_python_model
from tests.support.tiny import SPECIAL, WORDS, write_tokenizer

TEXT_MODEL = make_python_model("text-classification")
LABELS = ("negative", "positive")
PROFILE = ShapeProfile.of(batch=AxisRange(1, 4, 8), sequence=AxisRange(2, 8, 16))
TOKENS = tuple(Tensor(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask"))
LOGITS = Tensor("logits", "float32", ("batch", len(LABELS)))
CPU = GpuTarget("cpu", Backend.ONNXRUNTIME)
L4 = GpuTarget("l4", Backend.TENSORRT, "8.9", "NVIDIA L4")
# "good" and "fine" speak for the second class, "bad" and "poor" for the first.
OPINIONS = {"good": 2.0, "fine": 1.0, "bad": -2.0, "poor": -1.0}


def save_classifier(file: Path) -> None:
    """Save a graph whose logits [batch, 2] sum each word's opinion, for and against; padding does not count."""
    weights: NDArray[np.float32] = np.zeros((len(SPECIAL + WORDS), 2), np.float32)
    for word, opinion in OPINIONS.items():
        weights[(SPECIAL + WORDS).index(word)] = (-opinion, opinion)
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["opinions"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["opinions", "column"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "words"], ["logits"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([2], np.int64), "last"),
        numpy_helper.from_array(np.array([1], np.int64), "words"),
    ]
    inputs = [helper.make_tensor_value_info(t.name, TensorProto.INT64, ["batch", "sequence"]) for t in TOKENS]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph(nodes, "opinions", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(file))


def write_bundle(
    folder: Path,
    target: GpuTarget = CPU,
    *,
    engine: bytes | None = None,
    sequence: int = 1,
    labels: tuple[str, ...] = LABELS,
    profiles: tuple[ShapeProfile, ...] = (PROFILE,),
    rows: Sequence[WarmupRow] = (),
) -> Path:
    """Write a bundle with its manifest; the engine is the classifier, or the bytes given."""
    folder.mkdir(parents=True)
    name = "engine.onnx" if target.backend is Backend.ONNXRUNTIME else "engine.plan"
    if engine is None:
        save_classifier(folder / name)
    else:
        (folder / name).write_bytes(engine)
    write_tokenizer(folder)
    if rows:
        (folder / ROWS_FILE).write_bytes(write_rows(rows))
    files = record_tree(folder)
    engines = tuple(record for record in files if record.path == name)
    build = EngineBuild(
        file=name,
        files=engines,
        digest=engines[0].sha256,
        build_key=digest_of([target, engines]),
        onnx_digest="a" * 64,
        precision=Precision.FP32,
        backend=target.backend,
        backend_version="1.32.0" if target.backend is Backend.ONNXRUNTIME else "11.2.1.2",
        target=target,
        profiles=profiles,
        inputs=TOKENS,
        outputs=(LOGITS,),
        build_seconds=1.0,
        size_bytes=sum(record.size_bytes for record in engines),
    )
    manifest = EngineManifest(
        format_version=FORMAT_VERSION,
        model="opinions",
        release=f"r{sequence}",
        sequence=sequence,
        source=ModelSource("opinions", "tests", "b" * 40, "text-classification", labels),
        build=build,
        calibration_set=None,
        evaluation_set="none",
        measurements=(),
        gates=(),
        verdict=Verdict.PASSED,
        reason="every gate passed",
        toolchain=(),
        minimum_driver=None,
        files=files,
        created_at="2026-11-23T10:00:00+00:00",
    )
    (folder / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    return folder


def verified(bundle: Path) -> VerifiedBundle:
    """Whoever signed it: a bundle as the commands give it to Triton's repository."""
    return VerifiedBundle(bundle, verify_bundle(bundle))
