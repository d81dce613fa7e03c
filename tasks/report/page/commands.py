"""The commands that a reader of a report needs next, as text to copy."""

import shlex

from registry.names import candidate_alias, production_alias
from tasks.report.rows import EngineRow, ReleaseReport


def list_commands(report: ReleaseReport) -> list[dict[str, str]]:
    """List the commands that reproduce a release, and promote, compare, fetch and roll back its engines."""
    commands = [_command("reproduce", "the recipe below, saved as recipe.yaml", "release", "recipe.yaml")]
    for row in report.rows:
        if row.version is not None and candidate_alias(row.target) in row.aliases:
            commands += _list_for_candidate(report.model, row)
    versions = [str(row.version) for row in report.rows if row.version is not None]
    if versions:
        what = f"any version of this release: {', '.join(versions)}"
        commands.append(
            _command("fetch a version", what, "fetch", report.model, "--version", versions[0], "--any-host")
        )
    return commands


def _list_for_candidate(model: str, row: EngineRow) -> list[dict[str, str]]:
    engine, version, target = f"{row.target} {row.precision}", str(row.version), ("--target", row.target)
    fetch = _command("fetch", f"{row.target}, on a host that serves it", "fetch", model, *target)
    back = _command("roll back", f"{row.target}, to the version before", "rollback", model, *target)
    if production_alias(row.target) in row.aliases:
        return [fetch, back]
    return [_command("promote", engine, "promote", model, *target, "--version", version), fetch, back]


def _command(name: str, what: str, *words: str) -> dict[str, str]:
    return {"name": name, "what": what, "command": shlex.join(["enginery", *words])}
