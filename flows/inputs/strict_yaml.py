"""TODO: flows/inputs/strict_yaml.py."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from registry.errors import BadInput
from registry.names import check_name

# A recipe is a page of text; anything larger is a mistake or an attack.
LARGEST_FILE = 64 * 1024


def _name(value: str) -> str:
    try:
        return check_name(value, what="name")
    except BadInput as error:
        raise ValueError(str(error)) from error


Name = Annotated[str, AfterValidator(_name)]


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Count = Annotated[int, Field(ge=1, le=10_000_000)]


Fraction = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(gt=0)]


Text = Annotated[str, Field(min_length=1)]


# What every generator accepts, and canonical JSON holds exactly.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Part(BaseModel):
    """Every part refuses unknown keys, NaN and values of the wrong type."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (a few lines can expand to gigabytes) and without keys given twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed (line {self.peek_event().start_mark.line + 1})")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # As text: 1 and "1" are two keys to YAML, and one to every reader of a recipe.
        keys = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
        if twice := [key for position, key in enumerate(keys) if key in keys[:position]]:
            raise yaml.YAMLError(f"key {twice[0]!r} is given twice (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)  # not stat: a device or a pipe has no size
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {getattr(error, 'strerror', error)}; check the path") from error
    if len(content) > LARGEST_FILE:
        raise BadInput(f"{path} is larger than {LARGEST_FILE // 1024} KB: a recipe is a page of text")
    try:
        return yaml.load(content.decode(), _Loader)  # noqa: S506 - a SafeLoader, made stricter
    except Exception as error:  # PyYAML's constructors leak KeyError, IndexError, AttributeError, OverflowError
        words = "".join(each if each.isprintable() else "?" for each in " ".join(str(error).split()))
        raise BadInput(f"{path} is not a YAML file that can be read: {words}") from error


P = TypeVar("P", bound=Part)


def _parse(kind: type[P], path: Path) -> P:
    try:
        return kind.model_validate_json(json.dumps(_read(path), allow_nan=True))
    except ValidationError as error:
        problems = "; ".join(_in_words(problem) for problem in error.errors()[:3])
        more = "" if error.error_count() <= 3 else f"; and {error.error_count() - 3} more"
        raise BadInput(f"{path}: {problems}{more}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} holds a value that a recipe has no use for: {error}") from error


def _in_words(problem: Any) -> str:
    where = ".".join(_shown(step) for step in problem["loc"]) or "the file"
    if problem["type"] == "extra_forbidden":
        return f"{where}: there is no such key; check its spelling against docs/recipes.md"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"


def _shown(step: int | str) -> str:
    """A key as it stands in the file; one that would break the line, or the terminal, is quoted and cut."""
    key = str(step)
    return key if key.isprintable() and len(key) <= 60 else repr(key[:60])
