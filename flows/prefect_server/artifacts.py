"""Artifacts of a flow run: each shown under a key, replaced by the next one, and never worth a failed run."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from uuid import UUID

from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

log = logging.getLogger(__name__)


def put_artifact(artifact: Artifact, flow_run: str) -> None:
    """Show an artifact on the page of this flow run, in place of the run's artifact with the same key if it has one."""
    mine = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run)]),
        key=ArtifactFilterKey(any_=[str(artifact.key)]),
    )
    with get_client(sync_client=True) as client:
        if earlier := client.read_artifacts(artifact_filter=mine):
            update = ArtifactUpdate(data=artifact.format(), description=artifact.description)
            client.update_artifact(earlier[0].id, update)
            return
    artifact.create()


class PageUpdates:
    """Updates of a page, one at a time, and no more after one that failed; `what` is shown there."""

    def __init__(self, what: str) -> None:
        self._what, self._works, self._lock = what, True, Lock()

    def run(self, update: Callable[[], None]) -> None:
        """Run an update."""
        with self._lock:
            if self._works:
                self._works = False
                with warn_on_failure(self._what):
                    update()
                    self._works = True


@contextmanager
def warn_on_failure(what: str) -> Iterator[None]:
    """Log any exception of the block as one warning, since a page is not worth a release; `what` is shown there."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever fails, the flow run continues
        log.warning(
            "could not show %s in Prefect: %s", what, (str(error) or type(error).__name__).splitlines()[0][:300]
        )


def make_key(kind: str, name: str) -> str:
    """Return an artifact's key, in which Prefect allows lower-case letters, digits and dashes."""
    return f"{kind}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"
