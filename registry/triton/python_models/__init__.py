"""Models for Triton's Python backend, one per task: preprocessing, engine and answer in one request.

Each .py file here is copied into a model repository, and imports nothing of Enginery; `PYTHON_MODELS` says what it
takes and gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PythonModel:
    """The file of a Python model and its signature: (name, Triton's dtype, dims) of each tensor.

    Its first input is a string, and takes what a warm-up row holds as `request`.
    """

    file: Path
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]


TEXT_CLASSIFICATION = PythonModel(
    Path(__file__).with_name("text_classification.py"),
    inputs=(("text", "TYPE_STRING", (1,)),),
    outputs=(("label", "TYPE_STRING", (1,)), ("score", "TYPE_FP32", (1,))),
)
PYTHON_MODELS: Mapping[str, PythonModel] = {"text-classification": TEXT_CLASSIFICATION}
