"""The architectures that the installed transformers and Optimum have, read from their source: importing takes seconds.

What they cannot is exported by transformers 5, in an environment of its own (`tools/transformers5`).
"""

import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from registry.errors import BadInput
from tasks.execution.tools.catalog import TOOLS

_SOURCE, _TABLE = "models/auto/configuration_auto.py", "CONFIG_MAPPING_NAMES"
# A line of the table, ("bert", "BertConfig"). Not ast.parse: in two threads at once, as a flow's, Python 3.11 ends it
# with "AST constructor recursion depth mismatch" (https://github.com/python/cpython/issues/106905).
_ENTRY = re.compile(r'^\s*\("([^"]+)", "\w+"\),$', re.MULTILINE)


# A line of Optimum's, @register_tasks_manager_onnx("bert", …).
_EXPORT_SOURCE = "exporters/onnx/model_configs.py"
_EXPORT = re.compile(r'register_tasks_manager_onnx\(\s*"([^"]+)"')
# The model types of the version that its requirements pin: whoever checks a recipe may not have installed it.
NEWER_TOOL, _NEWER_TYPES = "transformers5", "model_types.txt"


def explain_newer(config: Mapping[str, Any]) -> str:
    """Say why Optimum cannot export a checkpoint that transformers 5 can, by its config.json; "" where it can."""
    kind, known = config.get("model_type"), list_model_types()
    if not known or kind not in list_newer_types():
        return ""
    if kind not in known:
        return f"transformers 4 has no model type {kind}"
    if (exported := list_exported_types()) and kind not in exported:
        return f"Optimum has no export of {kind}"
    # transformers 4 ignores the key, and would give its own defaults to the rotary positions.
    if any(part.get("rope_parameters") is not None for part in _walk(config)):
        return "it was saved by transformers 5 (rope_parameters)"
    return ""


def _walk(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        for entry in value.values():
            yield from _walk(entry)


def refuse_timm(config: Mapping[str, Any], name: str) -> None:
    """Refuse a checkpoint of timm, or its wrapper in transformers: both load through a package that is not installed.

    Raises:
        BadInput: the config in the file `name` is of one.
    """
    if config.get("model_type") == "timm_wrapper" or {"architecture", "pretrained_cfg"} <= config.keys():
        raise BadInput(
            f"{name} is of a timm checkpoint ({str(config.get('architecture'))[:60]}), which is not exported: use the "
            "same network in transformers' own form, or export it to ONNX with timm and name the graph in source.onnx"
        )


def check_model_type(model_type: object, name: str) -> None:
    """Check that transformers has an architecture of the `model_type` in the file `name`.

    Raises:
        BadInput: it has none, or the file names none.
    """
    known = list_model_types() and list_model_types() | list_newer_types()
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


@cache
def list_exported_types() -> frozenset[str]:
    """List the model types that the installed Optimum exports; none as `list_model_types`."""
    spec = importlib.util.find_spec("optimum")
    files = [Path(root) / _EXPORT_SOURCE for root in (spec and spec.submodule_search_locations) or ()]
    return frozenset(name for file in files if file.is_file() for name in _EXPORT.findall(file.read_text("utf-8")))


@cache
def list_newer_types() -> frozenset[str]:
    """List the model types of the transformers that the tool installs."""
    return frozenset((TOOLS / NEWER_TOOL / _NEWER_TYPES).read_text(encoding="utf-8").split())
