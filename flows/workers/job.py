"""A worker's side of a release: check a build request, and receive what all targets share."""

from flows.release.graphs import Graphs
from flows.release.scoring import SharedArtifacts
from flows.workers.build_requests import BuildRequest, RowsFile
from flows.workers.machine import check_machine
from flows.workers.stage_transfer import StageTransfer
from registry.errors import Incompatible
from registry.host.compatibility import read_host
from registry.records import CalibrationSet, OnnxArtifact, SourceFiles
from tasks.bundle.toolchain import own_code
from tasks.measurement.evaluate import Evaluation


def check_request(request: BuildRequest) -> None:
    """Refuse, before anything is downloaded, what this machine or this copy of Enginery cannot build.

    Raises:
        Incompatible: another GPU, driver or backend than the target's, or other code than the release's.
    """
    check_machine(request.target, request.spec.serving, read_host())
    if request.code != own_code():
        raise Incompatible(
            f"this worker runs another Enginery ({own_code()[:12]}) than the release ({request.code[:12]}): "
            "check out the same commit on both hosts"
        )


def receive_shared(request: BuildRequest, transfer: StageTransfer) -> SharedArtifacts:
    """Fetch and verify what all targets of the release share.

    The reference evaluation is fetched too: the build finds it in the workspace by its key.
    """
    transfer.receive(request.reference, Evaluation)
    return SharedArtifacts(
        transfer.receive(request.tokenizer, SourceFiles),
        transfer.receive(request.evaluation, RowsFile).read(),
        transfer.receive(request.golden, RowsFile).read(),
        transfer.receive(request.calibration, CalibrationSet),
        Graphs(
            {precision: transfer.receive(archive, OnnxArtifact) for precision, archive in request.graphs.items()},
            request.refused,
            request.failed,
            request.remarks,
        ),
        transfer.receive(request.more, RowsFile).read() if request.more else None,
    )
