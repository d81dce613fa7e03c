"""The deployed build-target with a door in every build: a test sees what is built, and can hold a build open."""

import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from prefect import flow
from prefect.client.schemas.objects import State

from flows import deployments
from flows.workers.build_requests import BuildRequest
from tasks.backends.contract import BuildInputs, BuiltEngine
from tasks.backends.ort import cpu as ort
from tasks.execution.progress import OnProgress

BEGUN, DONE = "begun", "done"


@dataclass(frozen=True)
class Door:
    """Notes the builds of one model, and stays shut for the precisions that are held; `folder` is the model's."""

    folder: Path

    def hold(self, precision: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / precision).touch()

    def open(self) -> None:
        for held in self.folder.iterdir():
            if held.name != "builds":
                held.unlink()

    def builds(self, what: str) -> list[str]:
        """Return the precisions whose builds have begun, or are done, in order."""
        noted = self.folder / "builds"
        lines = noted.read_text(encoding="utf-8").split("\n")[:-1] if noted.exists() else []
        return [precision for precision, _, event in (line.partition(" ") for line in lines) if event == what]

    def note(self, precision: str, what: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "builds").open("a", encoding="utf-8") as noted:
            noted.write(f"{precision} {what}\n")

    def wait(self, precision: str) -> None:
        while (self.folder / precision).exists():
            time.sleep(0.05)


@flow(name="build-target", flow_run_name="{request.name} of {request.release}", persist_result=False)
def build_target(request: BuildRequest, doors: str) -> State:
    """Run the deployed flow; its builds of ONNX Runtime pass the door of their model under the folder `doors`."""
    door, build = Door(Path(doors) / request.recipe.model), ort.build

    def held(inputs: BuildInputs, *, into: Path, on_progress: OnProgress) -> BuiltEngine:
        precision = inputs.onnx.precision
        door.note(precision, BEGUN)
        built = build(inputs, into=into, on_progress=on_progress)
        door.wait(precision)
        door.note(precision, DONE)
        return built

    with patch.object(ort, "build", held):
        state: State = deployments.build_target.fn(request)
    return state
