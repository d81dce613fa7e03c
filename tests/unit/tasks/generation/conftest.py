"""A tiny random T5 as two graphs, exported once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from registry.records import OnnxArtifact, SourceFiles
from tasks.generation.export import export_parts
from tasks.model_tasks.inputs.written import WritingEncoder
from tasks.model_tasks.texts.text2text_generation import TEXT2TEXT_GENERATION
from tests.support.writers import read_writer, save_writer

LARGEST = {"batch": 4, "sequence": 16, "new_tokens": 8}


@dataclass(frozen=True)
class Writer:
    """A checkpoint, its graphs and its encoder."""

    source: SourceFiles
    onnx: OnnxArtifact
    encoder: WritingEncoder


@pytest.fixture(scope="session")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    folder: Path = tmp_path_factory.mktemp("writer")
    save_writer(folder / "checkpoint")
    source = read_writer(folder / "checkpoint")
    onnx = export_parts(source, into=folder / "onnx")
    return Writer(source, onnx, TEXT2TEXT_GENERATION.open_encoder(source.directory, onnx.input_names, LARGEST))
