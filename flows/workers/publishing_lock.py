"""Let one release of a model write to the registry at a time, by a concurrency limit of Prefect."""

from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists

from registry.errors import EngineryError

# A publisher that was killed keeps the others waiting for this long, and at most 15 s more until Prefect looks. Renewed
# after three quarters of it: a Prefect server may be away for the last one.
LEASE_SECONDS = 90.0
# A release that waits for longer says what may be wrong, and waits on.
PATIENCE_SECONDS = 300.0


@contextmanager
def publishing_lock(
    model: str, release_id: str, say: Callable[[str], None], patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[None]:
    """Hold the publishing lock of a model, among all releases that this Prefect server knows.

    Raises:
        EngineryError: the lock was lost in the middle: this process or Prefect was paused for longer than the lease.
    """
    name = f"enginery-release-{model}"
    # Prefect looks whether it is there and then makes it: another release of the model may have been in between.
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.upsert_global_concurrency_limit_by_name(name, 1)
    try:
        with ExitStack() as lock:
            while not _acquire_slot(lock, name, patience_seconds):
                say(
                    f"still waiting for another release of {model} to publish: if none is running, the Prefect server "
                    f"was restarted and keeps leases in memory; `prefect gcl update {name} --active-slots 0` frees it"
                )
            yield
    except CancelledError as error:  # Prefect throws it into whatever is running here
        raise EngineryError(
            f"this release of {model} lost the publishing lock (it or the Prefect server was paused for more than "
            f"{LEASE_SECONDS:.0f} s); everything published so far is complete: continue with "
            f"`enginery release --resume {release_id}`"
        ) from error


def _acquire_slot(lock: ExitStack, name: str, patience_seconds: float) -> bool:
    """Wait for the only slot of a limit, which `lock` then holds; return False if it did not come free."""
    try:
        lock.enter_context(concurrency(name, 1, patience_seconds, lease_duration=LEASE_SECONDS, strict=True))
    except TimeoutError:
        return False
    return True
