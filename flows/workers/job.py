"""TODO: flows/workers/job.py."""

from flows.release.graphs import Graphs
from flows.release.publish import SharedArtifacts
from flows.workers.machine import check_machine
from flows.workers.orders import BuildRequest, RowsFile
from flows.workers.parcels import receive
from registry.errors import Incompatible
from registry.host.compatibility import read_host
from registry.mlflow.runs.run_files import RunFiles
from registry.records import CalibrationSet, OnnxArtifact, SourceFiles
from tasks.bundle.toolchain import own_code
from tasks.execution.workspace import Workspace
from tasks.measurement.evaluate import Evaluation


def check_order(order: BuildRequest) -> None:
    """Refuse, before anything is downloaded, what this machine or this copy of Enginery cannot do.

    Raises:
        Incompatible: another GPU, driver or backend than the target's, or other code than the release's.
    """
    check_machine(order.target, order.spec.serving, read_host())
    if order.code != own_code():
        raise Incompatible(
            f"this worker has another Enginery ({own_code()[:12]}) than the release ({order.code[:12]}): "
            "put the same commit on both"
        )


def receive_order(files: RunFiles, workspace: Workspace, order: BuildRequest) -> SharedArtifacts:
    """What all targets of the release share, fetched and verified; the reference evaluation is found by its key."""
    receive(files, workspace, order.reference, Evaluation)
    return SharedArtifacts(
        receive(files, workspace, order.tokenizer, SourceFiles),
        receive(files, workspace, order.evaluation, RowsFile).read(),
        receive(files, workspace, order.calibration, CalibrationSet),
        Graphs(
            {precision: receive(files, workspace, parcel, OnnxArtifact) for precision, parcel in order.graphs.items()},
            order.refused,
            order.remarks,
        ),
    )
