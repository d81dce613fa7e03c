"""The files of a model for Triton's Python backend, which answers as `enginery run` does on a server without Enginery.

model.py imports Enginery's own modules from a zip beside it, so each task's steps before and after the engine are
written once (docs/adr/0038-python-model.md).
"""

import io
import zipfile
from pathlib import Path

from registry.errors import Incompatible
from registry.triton.model import BUNDLE_FOLDER, PythonModel
from tasks.model_tasks import model_task
from tasks.model_tasks.own.module_task import MODULE

__all__ = ["ANSWER", "BUNDLE_FOLDER", "FILE", "make_python_model"]

ANSWER, FILE = "answer", "file"
_PACKAGES = ("calibration_data", "registry", "tasks")
_CODE = "enginery.zip"
# The oldest date that a zip can hold: the same modules are the same bytes.
_NO_DATE = (1980, 1, 1, 0, 0, 0)
_MODEL = f'''"""Answers as `enginery run` does, with Enginery's modules of the day on which this version was placed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).absolute().with_name("{_CODE}")))

from tasks.bundle.served import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def make_python_model(task: str) -> PythonModel:
    """Make the Python model of a task: its tensors, and the files that it needs beside a bundle.

    Raises:
        BadInput: there is no such task.
        Incompatible: it is a user's own, whose code no server runs by itself.
    """
    if task == MODULE:
        raise Incompatible(
            f"task: {MODULE} answers by Python code of its bundle, which the Python model does not run: place it "
            "without --python-backend, and serve its tensors"
        )
    chosen = model_task(task)
    answers = (ANSWER,) if chosen.answer_file is None else (ANSWER, FILE)
    return PythonModel(chosen.request, answers, (("model.py", _MODEL.encode()), (_CODE, _pack_code())))


def _pack_code() -> bytes:
    """Return a zip of Enginery's modules, without flows: other packages are imported where they are called."""
    root, packed = Path(__file__).parents[2], io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for package in _PACKAGES for file in (root / package).rglob("*.py")):
            name = zipfile.ZipInfo(file.relative_to(root).as_posix(), _NO_DATE)
            archive.writestr(name, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()
