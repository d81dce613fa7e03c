"""TODO: flows/workers/turn.py."""

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


# Who waits for longer is told what may be wrong.
TURN_SECONDS = 300.0


@contextmanager
def one_at_a_time(model: str, release: str, say: Callable[[str], None]) -> Iterator[None]:
    """One release of a model writes to the registry at a time, among all that this Prefect server knows of.

    Raises:
        EngineryError: the turn was lost in the middle: this process or Prefect stood still for longer than the lease.
    """
    name = f"enginery-release-{model}"
    # Prefect looks whether it is there and then makes it: another release of the model may have been in between.
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.upsert_global_concurrency_limit_by_name(name, 1)
    try:
        with ExitStack() as turn:
            while not _is_taken(turn, name):
                say(
                    f"still waiting for another release of {model} to publish: if none runs, a Prefect server that "
                    f"keeps leases in memory was restarted; `prefect gcl update {name} --active-slots 0` frees it"
                )
            yield
    except CancelledError as error:  # Prefect throws it into whatever is going on here
        raise EngineryError(
            f"this release of {model} lost its turn to publish, since it or the Prefect server stood still for too "
            f"long: what is published is whole; go on with `enginery release --resume {release}`"
        ) from error


def _is_taken(turn: ExitStack, name: str) -> bool:
    """Whether the only slot of a limit came free within TURN_SECONDS; it is held until `turn` ends."""
    try:
        turn.enter_context(concurrency(name, 1, TURN_SECONDS, lease_duration=LEASE_SECONDS, strict=True))
    except TimeoutError:
        return False
    return True
