"""A given graph's files: only plain files below its folder, hashed and copied."""

import os
from pathlib import Path

import onnx
import pytest
from onnx import helper

from registry.digest import file_sha256
from registry.errors import BadInput
from registry.records import SourceFiles
from tasks.checkpoints.module import Processor
from tasks.graphs.given import source as source_module
from tasks.graphs.given.source import copy_graph, digest_graph, list_graph_files, locate_graph, run_admission
from tasks.model_tasks import model_task
from tests.support.given_graphs import make_classifier, save_classifier
from tests.support.tiny import write_tokenizer

TASK = model_task("text-classification")
LABELS = ("negative", "positive")


def copy(graph: Path, digest: str, into: Path) -> SourceFiles:
    tokenizer = into / "tokenizer"
    tokenizer.mkdir(parents=True)
    write_tokenizer(tokenizer)
    copied = into / "copied"
    copied.mkdir()
    return copy_graph(
        graph, digest, Processor(tokenizer, TASK.serving_files), LABELS, name="tiny", task=TASK.name, into=copied
    )


def test_a_copied_graph_names_its_file_and_its_digest(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx")
    copied = copy(graph, digest_graph(graph), tmp_path)
    assert (copied.source.origin, copied.source.revision) == ("onnx:net.onnx", file_sha256(graph))
    assert copied.source.classes == LABELS
    assert locate_graph(copied).read_bytes() == graph.read_bytes()


def test_external_data_is_copied_and_part_of_the_digest(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", external="net.weights")
    digest = digest_graph(graph)
    copied = copy(graph, digest, tmp_path)
    assert sorted(file.path for file in copied.files) == ["graph/net.onnx", "graph/net.weights", "tokenizer.json"]
    weights = tmp_path / "net.weights"
    weights.write_bytes(weights.read_bytes()[::-1])
    assert digest_graph(graph) != digest


def test_a_graph_that_changed_since_it_was_identified_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="changed while it was copied"):
        copy(save_classifier(tmp_path / "net.onnx"), "0" * 64, tmp_path)


@pytest.mark.parametrize("location", ["../w", "/etc/hostname", "a/../../w", "C:\\w", "missing"])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    graph = save_classifier(tmp_path / "folder" / "net.onnx", external="w")
    (tmp_path / "w").write_bytes(b"other")
    model = onnx.load(graph, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=r"external data .* (is not below the graph's folder|is missing)"):
        list_graph_files(graph)


@pytest.mark.parametrize(("link", "words"), [(os.symlink, "symbolic link"), (os.link, "hard link")])
def test_linked_external_data_is_refused(tmp_path: Path, link: type, words: str) -> None:
    graph = save_classifier(tmp_path / "net.onnx", external="w")
    (tmp_path / "w").rename(tmp_path / "elsewhere")
    link(tmp_path / "elsewhere", tmp_path / "w")
    with pytest.raises(BadInput, match=words):
        list_graph_files(graph)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x3a\xff\xff\xff\xff\x0f", bytes(range(64))])
def test_what_is_no_graph_is_refused_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(content)
    with pytest.raises(BadInput, match="is not an ONNX graph"):
        run_admission(file, TASK, tmp_path, None, into=tmp_path / "made")


def test_a_torn_graph_is_refused_in_a_sentence(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx")
    graph.write_bytes(graph.read_bytes()[:-100])
    with pytest.raises(BadInput, match="is not an ONNX graph"):
        list_graph_files(graph)


def test_a_missing_file_and_one_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="is not a file"):
        list_graph_files(tmp_path / "net.onnx")
    graph = save_classifier(tmp_path / "net.onnx", external="w")
    monkeypatch.setattr(source_module, "LARGEST_DATA_BYTES", 10)
    with pytest.raises(BadInput, match="bytes of external data, more than 10"):
        list_graph_files(graph)
    monkeypatch.setattr(source_module, "LARGEST_GRAPH_BYTES", 10)
    with pytest.raises(BadInput, match="a graph has at most 10"):
        list_graph_files(graph)


def test_torn_external_data_is_refused_in_a_sentence(tmp_path: Path) -> None:
    graph = save_classifier(tmp_path / "net.onnx", external="w")
    (tmp_path / "w").write_bytes(b"short")
    with pytest.raises(BadInput, match="is not a valid ONNX graph"):
        run_admission(graph, TASK, tmp_path, None, into=tmp_path / "made")


def test_a_refusal_arrives_from_the_process_that_looked(tmp_path: Path) -> None:
    model = make_classifier()
    model.graph.node[0].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    graph = save_classifier(tmp_path / "net.onnx", model)
    with pytest.raises(BadInput, match="not ONNX's own"):
        run_admission(graph, TASK, tmp_path, None, into=tmp_path / "made")
