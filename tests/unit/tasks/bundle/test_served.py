"""The Python model without a server: what it does where the server's Python lacks a package, and its files."""

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from registry.errors import Incompatible
from tasks.bundle.python_model import BUNDLE_FOLDER, make_python_model
from tasks.bundle.served import TritonPythonModel
from tasks.model_tasks import MODEL_TASKS
from tests.support.triton_bundles import write_bundle

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("task", sorted(MODEL_TASKS))
def test_every_task_takes_one_kind_of_request_and_answers(task: str) -> None:
    python_model = make_python_model(task)
    assert python_model.request in ("text", "image", "audio")
    assert python_model.answers[0] == "answer"


def test_its_files_are_the_same_bytes_each_time() -> None:
    assert make_python_model("text-classification") == make_python_model("text-classification")


def test_the_modules_are_found_in_the_zip_alone(tmp_path: Path) -> None:
    for name, content in make_python_model("text-classification").files:
        (tmp_path / name).write_bytes(content)
    script = (
        "import runpy; print(runpy.run_path('model.py')['TritonPythonModel'].__module__); import tasks; print(tasks)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    module, package = done.stdout.splitlines()
    assert module == "tasks.bundle.served"
    assert str(tmp_path / "enginery.zip") in package


def test_the_zip_holds_modules_and_nothing_else() -> None:
    _, (_, packed) = make_python_model("text-classification").files
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"calibration_data", "registry", "tasks"}
    assert all(name.endswith(".py") for name in names)


def test_the_tests_server_has_the_packages_that_the_docs_list_and_no_others() -> None:
    listed = (
        (ROOT / "docs" / "serving.md").read_text().split("The container needs ")[1].split("Requests are batched")[0]
    )
    lists = re.findall(r"^\| .* \| (?:`FROM [^`]*`, )?`(?:RUN pip install )?([a-z0-9_ -]+)` \|$", listed, re.MULTILINE)
    pinned = re.findall(
        r"^([\w-]+)==", (ROOT / "tests" / "tritonserver" / "requirements.txt").read_text(), re.MULTILINE
    )
    assert {package for line in lists for package in line.split()} | {"nvidia-pytriton", "numpy"} == set(pinned)


def test_a_server_that_lacks_a_package_is_told_which_at_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "1" / BUNDLE_FOLDER)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(Incompatible, match=r"the server's Python has no tokenizers: see docs/serving\.md"):
        TritonPythonModel().initialize({"model_repository": str(tmp_path), "model_version": "1"})
