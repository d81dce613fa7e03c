"""Repair what a crash left unfinished: finish it if it is whole, mark it torn if not; leave running publishes alone.

- A bundle whose manifest, signature, file list and bytes verify was whole when its publisher died: it becomes a
  version.
- A bundle that cannot verify is torn, for good.
- What this host cannot judge (no key, another key, an artifact store that does not answer) is left as it is for a day.

Repairing twice, or on two hosts at once, has the same result (docs/adr/0013-reconciler.md).
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from registry.bundle.manifest import read_manifest, verify_files
from registry.bundle.signing import Trust, verify_signature
from registry.errors import BadInput, DigestMismatch, EngineryError, SignatureInvalid, TornBundle
from registry.host.process import has_ended
from registry.store import Repairable, Unfinished

# A publish that another host still works on is younger than this; on this host its process can be checked.
PATIENCE_SECONDS = 24 * 3600.0


class RepairOutcome(StrEnum):
    """What became of an unfinished publishing."""

    FINISHED = "finished"
    TORN = "torn"
    LEFT = "left"


@dataclass(frozen=True)
class RepairResult:
    """The outcome for one unfinished publishing: `version` is its number, if it has one; `reason` a sentence."""

    model: str
    run_id: str
    version: int | None
    outcome: RepairOutcome
    reason: str


def repair_unfinished(
    store: Repairable, trust: Callable[[], Trust], *, clock: Callable[[], datetime], model: str | None = None
) -> tuple[RepairResult, ...]:
    """Repair everything unfinished of one model, or of all; if there is nothing, this costs two searches.

    `trust` is called only if there is something to verify; its BadInput leaves that as it is.

    Raises:
        EngineryError: the registry did not answer.
    """
    now = clock().timestamp()
    return tuple(_repair(store, trust, unfinished, now) for unfinished in store.unfinished(model))


def publisher_is_gone(unfinished: Unfinished, now: float) -> bool:
    """Tell whether the publishing process has ended, or has been at work for longer than any publish takes.

    `now` is seconds since the epoch.
    """
    return _is_old(unfinished, now) or (unfinished.owner is not None and has_ended(unfinished.owner))


def _repair(store: Repairable, trust: Callable[[], Trust], unfinished: Unfinished, now: float) -> RepairResult:
    if not publisher_is_gone(unfinished, now):
        return _result(unfinished, RepairOutcome.LEFT, f"still being published by {unfinished.owner or 'unknown'}")
    try:
        if unfinished.complete:
            store.end_run(unfinished)
            return _result(unfinished, RepairOutcome.FINISHED, "the version was complete; its run is ended now")
        number = _finish(store, trust, unfinished)
    except (TornBundle, DigestMismatch, SignatureInvalid) as error:
        # Another publisher's key may be valid on its own host, which has a day to finish this.
        if isinstance(error, SignatureInvalid) and not _is_old(unfinished, now):
            return _result(unfinished, RepairOutcome.LEFT, str(error))
        store.mark_torn(unfinished, str(error))
        return _result(unfinished, RepairOutcome.TORN, str(error))
    except EngineryError as error:
        return _result(unfinished, RepairOutcome.LEFT, str(error))
    return _result(unfinished, RepairOutcome.FINISHED, "the bundle was whole and verified", number)


def _finish(store: Repairable, trust: Callable[[], Trust], unfinished: Unfinished) -> int:
    with tempfile.TemporaryDirectory(prefix="enginery-repair-") as scratch:
        folder = Path(scratch)
        store.download_unfinished(unfinished, folder)
        raw = verify_signature(folder, trust())
        try:
            manifest = read_manifest(raw)
            verify_files(folder, manifest)
        except BadInput as error:
            raise TornBundle(str(error)) from error
        return store.finish(unfinished, manifest)


def _is_old(unfinished: Unfinished, now: float) -> bool:
    return now - unfinished.since_seconds > PATIENCE_SECONDS


def _result(unfinished: Unfinished, outcome: RepairOutcome, reason: str, version: int | None = None) -> RepairResult:
    return RepairResult(unfinished.model, unfinished.run_id, version or unfinished.version, outcome, reason)
