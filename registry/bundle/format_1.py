"""Manifests of format 1, read as today's: bundles that were published before format 2 stay valid for ever.

Format 1 calls `source.classes` "labels", and a profile has exactly the axes batch and sequence, as its own keys.
"""

from typing import Any

VERSION = 1
_AXES = ("batch", "sequence")


def upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of format 1 with the fields of format 2; what does not fit is left for the reader to refuse."""
    source, build = document.get("source"), document.get("build")
    if isinstance(source, dict) and "classes" not in source:
        source = {("classes" if key == "labels" else key): value for key, value in source.items()}
    if isinstance(build, dict) and isinstance(profiles := build.get("profiles"), list):
        build = build | {"profiles": [_upgrade_profile(profile) for profile in profiles]}
    return document | {"source": source, "build": build}


def downgrade(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of format 2 with the fields of format 1: the inverse of `upgrade`."""
    source = {("labels" if key == "classes" else key): value for key, value in document["source"].items()}
    profiles = [dict(profile["axes"]) for profile in document["build"]["profiles"]]
    return document | {"source": source, "build": document["build"] | {"profiles": profiles}}


def _upgrade_profile(profile: object) -> object:
    if isinstance(profile, dict) and sorted(profile) == sorted(_AXES):
        return {"axes": [[name, profile[name]] for name in _AXES]}
    return {"not a profile of format 1": profile}
