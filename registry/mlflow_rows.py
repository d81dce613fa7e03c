"""A model version of MLflow as a row of ours; imports no mlflow, so that a fetch can read rows without it."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from registry.errors import BadInput
from registry.records import EngineVersion

_ROW = TypeAdapter(EngineVersion)


def row_from(found: Any, aliases: Mapping[str, int] | None = None) -> EngineVersion:
    """The row of a version with name, version, tags and aliases, as MLflow's client gives it.

    `aliases` of its model stand in for its own, which a search leaves empty.

    Raises:
        BadInput: its tags were edited.
    """
    number = int(found.version)
    tags = {name: value for name, value in found.tags.items() if name in EngineVersion.__dataclass_fields__}
    given = found.aliases if aliases is None else [alias for alias, at in aliases.items() if at == number]
    fields = {
        "compute_capability": None,
        "minimum_driver": None,
        **tags,
        "metrics": json.loads(tags.get("metrics", "[]")),
        "model": found.name,
        "version": number,
        "aliases": tuple(sorted(given)),
        "complete": found.tags.get("publish_state") == "complete",
    }
    try:
        return _ROW.validate_python(fields)
    except ValueError as error:
        raise BadInput(f"{found.name} version {number} has tags that were edited: {error}") from error
