"""The architectures that the installed transformers has, read from its source: importing it takes seconds."""

import difflib
import importlib.util
import re
from functools import cache
from pathlib import Path

from registry.errors import BadInput

_SOURCE, _TABLE = "models/auto/configuration_auto.py", "CONFIG_MAPPING_NAMES"
# A line of the table, ("bert", "BertConfig"). Not ast.parse: in two threads at once, as a flow's, Python 3.11 ends it
# with "AST constructor recursion depth mismatch" (https://github.com/python/cpython/issues/106905).
_ENTRY = re.compile(r'^\s*\("([^"]+)", "\w+"\),$', re.MULTILINE)


def check_model_type(model_type: object, name: str) -> None:
    """Check that transformers has an architecture of the `model_type` in the file `name`.

    Raises:
        BadInput: it has none, or the file names none.
    """
    known = list_model_types()
    if not isinstance(model_type, str) or not model_type:
        raise BadInput(f"{name} has no model_type: save the checkpoint with transformers' save_pretrained")
    if known and model_type not in known:
        near = difflib.get_close_matches(model_type[:60], sorted(known), n=1)
        hint = f"did you mean {near[0]}?" if near else "use a checkpoint of another architecture"
        raise BadInput(f"{name}: transformers has no model type {model_type[:60]!r}: {hint}")


@cache
def list_model_types() -> frozenset[str]:
    """List the model types of the installed transformers; none where it is not installed or keeps them elsewhere."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return frozenset()
    source = (Path(spec.origin).parent / _SOURCE).read_text(encoding="utf-8")
    _, found, table = source.partition(f"\n{_TABLE} = ")
    return frozenset(_ENTRY.findall(table[: table.find("\n)")])) if found else frozenset()
