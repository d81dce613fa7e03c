"""Translate MLflow's rows: a version into an `EngineVersion` and a `Bundle`, a run of the history into an event.

Imports no mlflow, as a fetch does not. A version here is what MLflow's client returns: it has a name, a version, tags
and aliases.
"""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

from pydantic import TypeAdapter, ValidationError

from registry.bundle.manifest import MANIFEST_FILE, MAX_BYTES, SIGNATURE_FILE
from registry.errors import BadInput, DigestMismatch, Interrupted, NotFound
from registry.names import check_name
from registry.records import EngineVersion, PromotionEvent
from registry.store import Bundle, BundleFiles
from registry.web import ANSWER_SECONDS

# Three tags of a version are for people. MLflow's page of a version sorts tags by name: the others come behind them.
_FOR_PEOPLE = ("target", "precision", "verdict")
# Tags of their own only because a search of MLflow's needs them: `MlflowStore.builds` and `Publications.find_published`
# (build_key), `Publications.complete_first` (sequence), `Repairs.unfinished` (publish_state).
VERSION_BUILD_KEY, VERSION_SEQUENCE, STATE = "version.build_key", "version.sequence", "version.publish_state"
COMPLETE = "complete"
# All the rest of the row, with the sha256 of its manifest and the process that published it, as JSON.
RECORD, PIN, PUBLISHER = "version.record", "manifest_sha256", "publisher"
# Columns of the row that MLflow stores itself, or that would go stale in a tag.
_NOT_RECORDED = (*_FOR_PEOPLE, "model", "version", "aliases", "complete", "build_key", "sequence")
# The longest text that is written to a parameter or a tag; MLflow's own limit is higher.
LONGEST = 5000

# Tags of a run of the history: the event's id, by which runs are sorted and found, and what they are filtered by.
EVENT_ID, EVENT_ALIAS, EVENT_OUTCOME = "enginery.event", "enginery.alias", "enginery.outcome"
# The whole event as JSON.
EVENT_RECORD = "enginery.record"
# Ids are in the order of the promotions, and so is their text; clocks of two hosts need not be.
NEWEST_EVENT_FIRST = f"tags.`{EVENT_ID}` DESC"

_REPAIR = "put the tags back in MLflow, or delete it there"
_ROW, _EVENT = TypeAdapter(EngineVersion), TypeAdapter(PromotionEvent)


def row_from(version: Any, aliases: Mapping[str, int] | None = None) -> EngineVersion:
    """Return the row of an MLflow version.

    `aliases` of its model stand in for its own, which a search leaves empty.

    Raises:
        BadInput: its tags were edited.
    """
    try:
        number = int(version.version)
    except ValueError as error:
        raise BadInput(f"{version.name}: MLflow answered with a version that is no number: check the server") from error
    own = version.aliases if aliases is None else [alias for alias, at in aliases.items() if at == number]
    columns = EngineVersion.__dataclass_fields__
    fields = {
        **{name: value for name, value in read_record(version).items() if name in columns},
        **{name: version.tags.get(name) for name in _FOR_PEOPLE},
        "build_key": version.tags.get(VERSION_BUILD_KEY),
        "sequence": version.tags.get(VERSION_SEQUENCE),
        "model": version.name,
        "version": number,
        "aliases": tuple(sorted(own)),
        "complete": version.tags.get(STATE) == COMPLETE,
    }
    try:
        return _ROW.validate_python(fields)
    except ValidationError as error:
        raise BadInput(
            f"{version.name} version {number} has tags that were edited ({_first_place(error)}): {_REPAIR}"
        ) from error


def tags_of(row: EngineVersion, **recorded: str) -> dict[str, str]:
    """Return the tags of a new version: those for people first; `recorded` is kept beside the rest of the row."""
    record = {name: value for name, value in asdict(row).items() if name not in _NOT_RECORDED}
    return {
        **{name: str(getattr(row, name)) for name in _FOR_PEOPLE},
        VERSION_BUILD_KEY: row.build_key,
        VERSION_SEQUENCE: str(row.sequence),
        RECORD: json.dumps(record | recorded),
    }


def read_record(version: Any) -> dict[str, Any]:
    """Return what the tag `version.record` holds; nothing where it was edited into something else."""
    try:
        record = json.loads(version.tags.get(RECORD, ""))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def read_manifest_bytes(version: Any, files: BundleFiles) -> bytes:
    """Return the manifest.json that a version was published with.

    Raises:
        DigestMismatch: it was changed after publishing.
        BadInput: it is larger than any manifest.
        NotFound, Interrupted, EngineryError: as `BundleFiles.read`.
    """
    raw = _read_whole(files, MANIFEST_FILE)
    # MLflow lets anyone overwrite a version's files; the row's tag says which manifest was published.
    if sha256(raw).hexdigest() != read_record(version).get(PIN):
        raise DigestMismatch(
            f"{version.name} version {version.version}: its manifest was changed since: do not trust it"
        )
    return raw


def bundle_of(version: Any, files: BundleFiles) -> Bundle:
    """Return a version's bundle; its signature is None if it has none.

    Raises:
        DigestMismatch, BadInput, NotFound, Interrupted, EngineryError: as `read_manifest_bytes`.
    """
    raw = read_manifest_bytes(version, files)
    try:
        return Bundle(raw, _read_whole(files, SIGNATURE_FILE), files)
    except NotFound:
        return Bundle(raw, None, files)


def history_experiment(model: str) -> str:
    """Return the name of the experiment that holds a model's history; no model's name has a '/'."""
    return f"{check_name(model, what='model')}/history"


def events_query(alias: str | None, outcome: str | None) -> str:
    """Return the search for events of one alias, of one outcome, or of any."""
    conditions = [f"tags.`{EVENT_ID}` != ''"]
    conditions += [f"tags.`{EVENT_ALIAS}` = '{check_name(alias, what='alias')}'"] if alias else []
    conditions += [f"tags.`{EVENT_OUTCOME}` = '{check_name(outcome, what='outcome')}'"] if outcome else []
    return " and ".join(conditions)


def event_from(tags: Mapping[str, str]) -> PromotionEvent:
    """Return the event that a run of the history records.

    Raises:
        BadInput: its tags were edited.
    """
    try:
        return replace(_EVENT.validate_json(tags.get(EVENT_RECORD, "")), outcome=tags.get(EVENT_OUTCOME, ""))
    except ValidationError as error:
        raise BadInput(
            f"the history's event {tags.get(EVENT_ID)} has tags that were edited ({_first_place(error)}): {_REPAIR}"
        ) from error


def _first_place(error: ValidationError) -> str:
    # Not pydantic's own words, which speak of its types and go on for pages.
    return ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"]) or "no JSON"


def _read_whole(files: BundleFiles, path: str) -> bytes:
    content, deadline = bytearray(), time.monotonic() + ANSWER_SECONDS
    with closing(files.read(path)) as chunks:
        for chunk in chunks:
            content += chunk
            if len(content) > MAX_BYTES:
                raise BadInput(f"{path} is larger than {MAX_BYTES} bytes: it was changed since; do not trust it")
            if time.monotonic() > deadline:
                raise Interrupted(
                    f"{path} took more than {ANSWER_SECONDS:g} s to arrive: check the server, fetch again"
                )
    return bytes(content)
