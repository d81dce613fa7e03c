"""Finish what a crash left half published, or set it aside; what is being published now is left alone.

A bundle whose manifest, signature, listing and bytes verify was whole when its publisher died: it becomes a version.
What cannot verify becomes torn, for good. What this host cannot judge (no key, another key, an artifact store out of
reach) stays as it is, a day long. Doing it twice, or on two hosts at once, ends the same (docs/adr/0013-reconciler.md).
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from registry.bundle.manifest import verify_bundle
from registry.bundle.signing import Trust, verify_signature
from registry.errors import BadInput, DigestMismatch, EngineryError, SignatureInvalid, TornBundle
from registry.host.process import has_ended
from registry.store import Repairable, Unfinished

# An upload that other hosts' processes still work on is younger than this; one of this host is asked directly.
PATIENCE_SECONDS = 24 * 3600.0


class RepairOutcome(StrEnum):
    """What became of something unfinished."""

    FINISHED = "finished"
    TORN = "torn"
    LEFT = "left"


@dataclass(frozen=True)
class Settled:
    """One unfinished publishing: `version` is its number, where it has one; `reason` is in words."""

    model: str
    run_id: str
    version: int | None
    outcome: RepairOutcome
    reason: str


def reconcile(
    store: Repairable, trust: Callable[[], Trust], *, clock: Callable[[], datetime], model: str | None = None
) -> tuple[Settled, ...]:
    """Settle everything unfinished of one model, or of all; nothing to settle costs two searches.

    `trust` is asked only where there is something to verify; its BadInput leaves that as it is.

    Raises:
        EngineryError: the registry could not be asked.
    """
    now = clock().timestamp()
    return tuple(_settle(store, trust, left, now) for left in store.unfinished(model))


def _settle(store: Repairable, trust: Callable[[], Trust], left: Unfinished, now: float) -> Settled:
    if not abandoned(left, now):
        return Settled(
            left.model, left.run_id, left.version, RepairOutcome.LEFT, f"at work on it: {left.owner or 'unknown'}"
        )
    try:
        if left.complete:
            store.close(left)
            return _settled(
                left, RepairOutcome.FINISHED, "the version was complete, its run is ended now", left.version
            )
        number = _finish(store, trust, left)
    except (TornBundle, DigestMismatch, SignatureInvalid) as error:
        # Another publisher's key is not ours to judge by, until nobody came to finish it for a day.
        if isinstance(error, SignatureInvalid) and not _is_old(left, now):
            return _settled(left, RepairOutcome.LEFT, str(error), left.version)
        store.tear(left, str(error))
        return _settled(left, RepairOutcome.TORN, str(error), left.version)
    except EngineryError as error:
        return _settled(left, RepairOutcome.LEFT, str(error), left.version)
    return _settled(left, RepairOutcome.FINISHED, "all of it was there, and it verified", number)


def _finish(store: Repairable, trust: Callable[[], Trust], left: Unfinished) -> int:
    with tempfile.TemporaryDirectory(prefix="enginery-repair-") as scratch:
        folder = Path(scratch)
        store.download_unfinished(left, folder)
        verify_signature(folder, trust())
        try:
            manifest = verify_bundle(folder)
        except BadInput as error:
            raise TornBundle(str(error)) from error
        return store.finish(left, manifest)


def abandoned(left: Unfinished, now: float) -> bool:
    """Whether whoever published this has ended, or has been at it for longer than anyone is.

    `now` is seconds since the epoch.
    """
    return _is_old(left, now) or (left.owner is not None and has_ended(left.owner))


def _is_old(left: Unfinished, now: float) -> bool:
    return now - left.since_seconds > PATIENCE_SECONDS


def _settled(left: Unfinished, outcome: RepairOutcome, reason: str, version: int | None) -> Settled:
    return Settled(left.model, left.run_id, version, outcome, reason)
