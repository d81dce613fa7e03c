"""A checkpoint is exported in a process of its own, without a network, and with an attention that it cannot choose."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.digest import verify_tree
from registry.errors import BadInput
from registry.records import SourceFiles
from tasks.checkpoints.source import from_folder
from tasks.graphs.export import export_checkpoint
from tasks.graphs.exporter import run_exporter
from tasks.model_tasks.images.image_classification import IMAGE_CLASSIFICATION
from tasks.model_tasks.images.semantic_segmentation import SEMANTIC_SEGMENTATION
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tests.support.images import draw_image, save_classifier, save_segmenter
from tests.support.tiny import tiny_bert

TEXTS = ("a good film", "bad music for the editor of the library")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceFiles:
    root = tmp_path_factory.mktemp("source")
    return from_folder(tiny_bert(root / "made"), name="tiny", task="text-classification", into=root / "taken")


def change_behind_the_check(source: SourceFiles, folder: Path, file: str, **changes: Any) -> SourceFiles:
    """The checkpoint with keys of a file set after it was checked."""
    shutil.copytree(source.directory, folder)
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))
    return replace(source, directory=folder)


def test_the_process_gives_the_graph_that_this_one_would(source: SourceFiles, tmp_path: Path) -> None:
    graph = run_exporter(source, TEXT_CLASSIFICATION, TEXTS, {"sequence": 16}, into=tmp_path / "child")
    verify_tree(graph.directory, graph.files)
    assert graph.digest == export_checkpoint(source, into=tmp_path / "here").digest


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_the_attention_is_never_what_the_file_says(key: str, source: SourceFiles, tmp_path: Path) -> None:
    hostile = change_behind_the_check(source, tmp_path / "hostile", "config.json", **{key: "owner/repo"})
    with pytest.raises(BadInput, match="loads native code from a repository"):
        export_checkpoint(hostile, into=tmp_path / "hostile-graph")
    other = change_behind_the_check(source, tmp_path / "other", "config.json", **{key: "flash_attention_2"})
    graph = export_checkpoint(other, into=tmp_path / "other-graph")
    assert graph.digest == export_checkpoint(source, into=tmp_path / "graph").digest


def test_a_token_type_that_the_network_lacks_is_a_sentence(source: SourceFiles, tmp_path: Path) -> None:
    steps = [{"SpecialToken": {"id": "[CLS]", "type_id": 9}}, {"Sequence": {"id": "A", "type_id": 0}}]
    before = json.loads((source.directory / "tokenizer.json").read_text())["post_processor"]
    wrong = change_behind_the_check(
        source, tmp_path / "wrong", "tokenizer.json", post_processor=before | {"single": steps}
    )
    with pytest.raises(BadInput, match=r"fails in PyTorch on real rows \(index out of range.*\): its config\.json and"):
        run_exporter(wrong, TEXT_CLASSIFICATION, TEXTS, {"sequence": 16}, into=tmp_path / "graph")


def test_only_the_batch_of_an_image_models_graph_is_dynamic(tmp_path: Path) -> None:
    """Its other sizes are the image processor's, so a profile names the batch alone."""
    made = save_classifier(tmp_path / "made", edge=24)
    source = from_folder(made, name="shapes", task="image-classification", into=tmp_path / "taken")
    images = [draw_image(seed, (20 + seed, 30)) for seed in range(3)]
    graph = run_exporter(source, IMAGE_CLASSIFICATION, images, {"batch": 4}, into=tmp_path / "graph")
    assert [(tensor.name, tensor.shape) for tensor in graph.inputs] == [("pixel_values", ("batch_size", 3, 24, 24))]
    assert [tensor.shape for tensor in graph.outputs] == [("batch_size", 3)]


def test_the_size_of_a_map_is_not_said_to_be_that_of_the_image(tmp_path: Path) -> None:
    made = save_segmenter(tmp_path / "made", edge=32)
    source = from_folder(made, name="maps", task="semantic-segmentation", into=tmp_path / "taken")
    graph = run_exporter(source, SEMANTIC_SEGMENTATION, [draw_image(0)], {"batch": 4}, into=tmp_path / "graph")
    assert [tensor.shape for tensor in graph.inputs] == [("batch_size", 3, 32, 32)]
    assert [tensor.shape for tensor in graph.outputs] == [("batch_size", "num_labels", "map_height", "map_width")]


def test_an_image_model_without_its_processor_is_a_sentence(tmp_path: Path) -> None:
    made = save_classifier(tmp_path / "made")
    (made / "preprocessor_config.json").unlink()
    source = from_folder(made, name="shapes", task="image-classification", into=tmp_path / "taken")
    with pytest.raises(BadInput, match=r"has no preprocessor_config\.json: save the checkpoint with its image"):
        run_exporter(source, IMAGE_CLASSIFICATION, [draw_image(0)], {"batch": 4}, into=tmp_path / "graph")
