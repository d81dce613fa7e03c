"""Names from outside, checked once: MLflow itself accepts newlines, `@` and path traversal."""

import re

from registry.errors import BadInput, BadName

# At most 63 characters: the limit of a DNS label, so that a name fits Kubernetes and bucket paths too.
NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
# An alias is one of these prefixes and a target's name.
PRODUCTION, CANDIDATE = "production-", "candidate-"
# MLflow's column is an INTEGER, of which PostgreSQL keeps 32 bits.
LARGEST_VERSION = 2**31 - 1


def check_name(name: str, *, what: str) -> str:
    """Return `name` if it is safe as a folder, an MLflow name and an alias.

    Raises:
        BadName: it is not lower-case letters, digits, `.`, `_`, `-` (1 to 63, no `..`).
    """
    if not NAME.fullmatch(name) or ".." in name:
        shown = name if len(name) <= 60 else f"{name[:60]}…"
        raise BadName(
            f"{what} {shown!r} is not a valid name: use 1 to 63 lower-case letters, digits, '.', '_' or '-', "
            "starting and ending with a letter or digit, without '..'"
        )
    return name


def check_version(version: int) -> int:
    """Return `version` if it can be a version's number.

    Raises:
        BadInput: it is below 1, or above what MLflow's column holds.
    """
    if not 1 <= version <= LARGEST_VERSION:
        raise BadInput(f"version {version} cannot exist, versions count from 1: `enginery list` shows them")
    return version


def production_alias(target: str) -> str:
    """Return the alias that servers of `target` resolve."""
    return _make_alias(PRODUCTION, target)


def candidate_alias(target: str) -> str:
    """Return the alias of the engine that would be promoted next."""
    return _make_alias(CANDIDATE, target)


def _make_alias(prefix: str, target: str) -> str:
    return check_name(f"{prefix}{check_name(target, what='target')}", what="alias")
