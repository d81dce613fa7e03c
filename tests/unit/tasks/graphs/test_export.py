import importlib.metadata
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from registry.digest import verify_tree
from registry.errors import BadInput, EngineryError
from registry.records import OnnxArtifact, Precision, SourceFiles
from tasks.checkpoints.module import load_module
from tasks.checkpoints.source import from_folder
from tasks.graphs.export import check_export, export_checkpoint, export_module
from tasks.graphs.session import exact_options
from tasks.model_tasks.inputs.texts import FeedDict, open_text_encoder
from tests.support.tiny import tiny_bert

TEXTS = ("a good film", "bad music", "the editor of the library for good and fine films and poor films")


def two_layers() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return TwoLayers(), {"pixels": torch.zeros(1, 6)}


class TwoLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = torch.nn.Linear(6, 5), torch.nn.Linear(5, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.hidden(pixels)))  # type: ignore[no-any-return]


class Branching(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.sum() > 0:
            return pixels
        return -pixels


def branching() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return Branching(), {"pixels": torch.ones(2, 6)}


class FixedBatch(torch.nn.Module):
    """Takes the batch as a Python number."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.reshape(int(pixels.shape[0]), 2, 3).sum(2) + torch.zeros(int(pixels.shape[0]), 2)


def fixed_batch() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return FixedBatch(), {"pixels": torch.ones(2, 6)}


class Decided(torch.nn.Module):
    """Also returns a truth value and a whole number per row."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = pixels[:, :2] - pixels[:, 2:4]
        return logits, logits > 0, logits.argmax(1)


def decided() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return Decided(), {"pixels": torch.ones(2, 6)}


def misnamed() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return TwoLayers(), {"image": torch.ones(2, 6)}


def failing() -> None:
    raise ZeroDivisionError("by zero")


def not_a_module() -> str:
    return "module"


def without_samples() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return TwoLayers(), {}


def run_graph(graph: OnnxArtifact, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return the graph's only output."""
    session = onnxruntime.InferenceSession(graph.path, exact_options(), providers=["CPUExecutionProvider"])
    output: NDArray[np.float32] = session.run(None, dict(feed))[0]
    return output


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFiles:
    root = tmp_path_factory.mktemp("source")
    return from_folder(tiny_bert(root / "made"), name="tiny", task="text-classification", into=root / "taken")


@pytest.fixture(scope="module")
def graph(source: SourceFiles, tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    return export_checkpoint(source, into=tmp_path_factory.mktemp("onnx"))


def feed_of(source: SourceFiles, graph: OnnxArtifact) -> FeedDict:
    return open_text_encoder(source.directory, graph.input_names, {"sequence": 32}).encode(TEXTS)


def test_checkpoint_exports_with_named_dynamic_axes(graph: OnnxArtifact) -> None:
    assert {tensor.name for tensor in graph.inputs} == {"input_ids", "attention_mask", "token_type_ids"}
    assert {tensor.shape for tensor in graph.inputs} == {("batch_size", "sequence_length")}
    assert {tensor.dtype for tensor in graph.inputs} == {"int64"}
    assert [(tensor.name, tensor.dtype) for tensor in graph.outputs] == [("logits", "float32")]
    assert graph.outputs[0].shape == ("batch_size", 2)
    assert (graph.opset, graph.precision) == (18, Precision.FP32)
    assert graph.exporter == f"optimum-onnx {importlib.metadata.version('optimum-onnx')}"


def test_the_artifact_holds_the_graph_alone(graph: OnnxArtifact) -> None:
    assert [file.path for file in graph.files] == ["model.onnx"]
    verify_tree(graph.directory, graph.files)


def test_exporting_again_gives_the_same_digest(source: SourceFiles, graph: OnnxArtifact, tmp_path: Path) -> None:
    assert export_checkpoint(source, into=tmp_path / "again").digest == graph.digest


def test_graph_computes_what_the_checkpoint_computes(source: SourceFiles, graph: OnnxArtifact) -> None:
    feed = feed_of(source, graph)
    module = AutoModelForSequenceClassification.from_pretrained(source.directory).eval()
    with torch.inference_mode():
        expected = module(**{name: torch.from_numpy(values) for name, values in feed.items()}).logits.numpy()
    assert np.abs(run_graph(graph, feed) - expected).max() < 1e-4
    check_export(source, graph, feed)


def test_export_prints_nothing(source: SourceFiles, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_checkpoint(source, into=tmp_path / "onnx")
    export_module("tests.unit.tasks.graphs.test_export:two_layers", into=tmp_path / "module")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("change", [lambda weights: weights * 1.01, lambda weights: weights * np.nan])
def test_changed_weights_are_noticed(source: SourceFiles, graph: OnnxArtifact, tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    tampered = onnx.load(str(graph.path))
    weights = next(tensor for tensor in tampered.graph.initializer if tensor.name == "classifier.weight")
    changed = change(onnx.numpy_helper.to_array(weights)).astype(np.float32)
    weights.CopyFrom(onnx.numpy_helper.from_array(changed, weights.name))
    onnx.save(tampered, str(tmp_path / graph.file))
    with pytest.raises(EngineryError, match="output logits differs from PyTorch"):
        check_export(source, replace(graph, directory=tmp_path), feed_of(source, graph))


def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path) -> None:
    encoder = tiny_bert(tmp_path / "encoder", ())
    source = from_folder(encoder, name="tiny", task="text-classification", into=tmp_path / "taken")
    with pytest.raises(BadInput, match=r"no weights for classifier\.bias"):
        export_checkpoint(source, into=tmp_path / "onnx")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"intermediate_size": 65},
            r"cannot be loaded \(RuntimeError: Error\(s\) in .*: size mismatch.*config\.json must describe",
        ),
        ({"num_attention_heads": 5}, r"cannot be loaded \(ValueError: .*attention heads.*config\.json must describe"),
        ({"hidden_act": "nope"}, r"cannot be loaded \(KeyError: 'nope'\): its config\.json must describe"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = tiny_bert(tmp_path / "made")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    source = from_folder(folder, name="tiny", task="text-classification", into=tmp_path / "taken")
    with pytest.raises(BadInput, match=sentence) as caught:
        export_checkpoint(source, into=tmp_path / "onnx")
    assert str(caught.value).isprintable()


def test_an_unknown_task_is_refused(source: SourceFiles, tmp_path: Path) -> None:
    wrong = replace(source, source=replace(source.source, task="levitation"))
    with pytest.raises(BadInput, match="levitation"):
        export_checkpoint(wrong, into=tmp_path / "onnx")


def test_a_filled_folder_is_refused(source: SourceFiles, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(BadInput, match="not an empty folder"):
        export_checkpoint(source, into=tmp_path)


def test_module_exports_with_a_dynamic_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = export_module("tests.unit.tasks.graphs.test_export:two_layers", into=tmp_path / "onnx")
    assert [(tensor.name, tensor.shape) for tensor in graph.inputs] == [("pixels", ("batch_size", 6))]
    assert [tensor.shape for tensor in graph.outputs] == [("batch_size", 3)]
    torch.manual_seed(0)
    module, _ = load_module("tests.unit.tasks.graphs.test_export:two_layers")
    for rows in (1, 7):
        pixels = np.ones((rows, 6), np.float32)
        expected = module(torch.from_numpy(pixels)).detach().numpy()
        assert np.abs(run_graph(graph, {"pixels": pixels}) - expected).max() < 1e-5
        check_export(module, graph, {"pixels": pixels})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        ("branching", r"test_export\.py, line \d+: forward\(\) decides by the values of a tensor.*: use torch\.where"),
        ("fixed_batch", r"the batch axis of input pixels is fixed at 2: its code uses that size as a Python number"),
        ("misnamed", r"forward\(\) has an argument that the sample inputs lack: name them as forward\(\) does$"),
    ],
)
def test_a_module_that_cannot_be_exported_is_refused_in_our_words(
    make: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInput, match=sentence) as caught:
        export_module(f"tests.unit.tasks.graphs.test_export:{make}", into=tmp_path / "onnx")
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")


def test_outputs_that_are_no_floats_are_compared_too(tmp_path: Path) -> None:
    graph = export_module("tests.unit.tasks.graphs.test_export:decided", into=tmp_path / "onnx")
    assert [tensor.dtype for tensor in graph.outputs] == ["float32", "bool", "int64"]
    pixels = np.random.default_rng(5).standard_normal((9, 6)).astype(np.float32)
    check_export(Decided(), graph, {"pixels": pixels})

    class Opposite(Decided):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            logits, positive, best = super().forward(pixels)
            return logits, ~positive, best

    with pytest.raises(EngineryError, match="differs from PyTorch by 1 "):
        check_export(Opposite(), graph, {"pixels": pixels})


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("test_export", "not of the form"),
        ("tests.unit.tasks.graphs.test_export:", "not of the form"),
        ("../tests.unit.tasks.graphs.test_export:two_layers", "not of the form"),
        ("os:system('x')", "not of the form"),
        ("tests.unit.tasks.graphs.test_export:two_layers\n", "not of the form"),
        ("absent_package.nets:make", "No module named 'absent_package'"),
        ("tests.unit.tasks.graphs.test_export:absent", "no callable named absent"),
        ("tests.unit.tasks.graphs.test_export:TEXTS", "no callable named TEXTS"),
        ("tests.unit.tasks.graphs.test_export:not_a_module", "must return (torch.nn.Module"),
        ("tests.unit.tasks.graphs.test_export:without_samples", "named tensors"),
        (
            "tests.unit.tasks.graphs.test_export:failing",
            "failed with ZeroDivisionError (by zero) at test_export.py, line",
        ),
    ],
)
def test_a_wrong_callable_is_refused(path: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        load_module(path)
