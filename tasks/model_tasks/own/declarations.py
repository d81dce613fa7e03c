"""What a task module declares in constants: literals, read from its text without running it."""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from registry.errors import BadInput
from tasks.model_tasks.contract import OfSums, Scores
from tasks.model_tasks.scores import compute_correlation, compute_f1, compute_ratio

# The columns that `rows` reads, the metric, files beside the module that travel with it, outputs that are judged.
CONSTANTS = ("COLUMNS", "METRIC", "FILES", "OUTPUTS")
MOST_OUTPUTS = 64
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
# Figures that every engine has.
_TAKEN = re.compile(r"(flips|mcnemar_p|batch_|latency|throughput|speedup|size|windows|macs)")
# Nothing in a bundle may be overwritten, or look as if it were of another kind.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_OWN_FILES = re.compile(r"(task_module|engine|model|manifest|golden|warmup|bom)\b.*|MLmodel|.*\.sig.*", re.IGNORECASE)


def compute_root_mean(sums: Scores) -> Scores:
    """Return the root of the first number over the second: of squared errors and rows the root mean square error."""
    root: Scores = np.sqrt(compute_ratio(sums))
    return root


@dataclass(frozen=True)
class Aggregate:
    """How figures come of the sums over rows of `numbers` scores a row; None: the share of rows that are 1."""

    numbers: int
    compute: OfSums | None
    counts_rows: bool = False


AGGREGATES: Mapping[str, Aggregate] = {
    "mean": Aggregate(1, OfSums(compute_ratio), counts_rows=True),
    "root-mean": Aggregate(1, OfSums(compute_root_mean), counts_rows=True),
    "share": Aggregate(1, None),
    "ratio": Aggregate(2, OfSums(compute_ratio)),
    "f1": Aggregate(3, OfSums(compute_f1)),
    "correlation": Aggregate(6, OfSums(compute_correlation)),
}


@dataclass(frozen=True)
class DeclaredMetric:
    """The metric of a task module; `aggregate` is a key of AGGREGATES."""

    name: str
    unit: str
    higher_is_better: bool
    aggregate: str


@dataclass(frozen=True)
class Declarations:
    """A task module's constants; the first `outputs` of the graph are judged."""

    columns: tuple[str, ...]
    metric: DeclaredMetric
    files: tuple[str, ...] = ()
    outputs: int = 1


def read_declarations(code: bytes, where: str) -> Declarations:
    """Read the constants of a task module from its text.

    Raises:
        BadInput: it is no Python, a constant is missing, no literal or of another form; `where` names the module.
    """
    found = _find_constants(code, where)
    if "COLUMNS" not in found:
        raise BadInput(
            f'{where} declares no COLUMNS, the dataset\'s columns that rows() reads: add COLUMNS = ("x", "y")'
        )
    columns = _read_names(found["COLUMNS"], f"{where}: COLUMNS", "names of columns")
    files = _read_names(found.get("FILES", ()), f"{where}: FILES", "names of files beside it")
    if wrong := next((name for name in files if not _FILE.fullmatch(name) or _OWN_FILES.fullmatch(name)), None):
        raise BadInput(
            f"{where}: FILES has {wrong!r:.100}: name plain files beside it, none of which a bundle has itself"
        )
    outputs = found.get("OUTPUTS", 1)
    if type(outputs) is not int or not 1 <= outputs <= MOST_OUTPUTS:
        raise BadInput(f"{where}: OUTPUTS is {outputs!r:.60}: give how many outputs of the graph are judged, 1 or more")
    return Declarations(columns, _read_metric(found.get("METRIC"), where), files, outputs)


def _find_constants(code: bytes, where: str) -> dict[str, Any]:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise BadInput(f"{where}{line}: {reason}: name a Python file with COLUMNS, METRIC and the functions") from None
    found = {}
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if isinstance(target, ast.Name) and target.id in CONSTANTS:
                value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
                found[target.id] = _read_literal(value, f"{where}, line {node.lineno}: {target.id}")
    return found


def _read_literal(value: ast.expr | None, where: str) -> Any:
    try:
        return ast.literal_eval(value) if value is not None else None
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise BadInput(
            f"{where} is no literal, and it is read without running the file: write its values out"
        ) from None


def _read_names(value: Any, where: str, wanted: str) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, tuple | list) else None
    if names is None or not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise BadInput(f"{where} is {value!r:.100}: give a tuple of {wanted}, each once")
    return names


def _read_metric(value: Any, where: str) -> DeclaredMetric:
    example = 'METRIC = {"name": "error", "unit": "points", "higher_is_better": False}'
    if not isinstance(value, dict):
        raise BadInput(f"{where} declares no METRIC, what engines are judged by: add {example}")
    if unknown := sorted(set(map(str, value)) - {"name", "unit", "higher_is_better", "aggregate"}):
        raise BadInput(f"{where}: METRIC has no key {unknown[0]!r:.60}: write it as {example}")
    name, unit = value.get("name"), value.get("unit")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or _TAKEN.match(name):
        raise BadInput(
            f"{where}: METRIC's name is {name!r:.60}: give one of small letters, digits and _ that no other figure "
            f"has, as in {example}"
        )
    if not isinstance(unit, str) or not unit.isprintable() or not 1 <= len(unit) <= 40:
        raise BadInput(f"{where}: METRIC's unit is {unit!r:.60}: give a short text, as in {example}")
    better, aggregate = value.get("higher_is_better", True), value.get("aggregate", "mean")
    if not isinstance(better, bool):
        raise BadInput(f"{where}: METRIC's higher_is_better is {better!r:.60}: give True or False")
    if aggregate not in AGGREGATES:
        raise BadInput(f"{where}: METRIC's aggregate is {aggregate!r:.60}: choose from {', '.join(AGGREGATES)}")
    return DeclaredMetric(name, unit, better, aggregate)
