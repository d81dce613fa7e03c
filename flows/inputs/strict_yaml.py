"""A strict YAML reader for files that people write: recipes and fleet files.

`parse_yaml(model, path)` reads a file into a pydantic model. Aliases, repeated keys, unknown keys, NaN and values of
another type are refused, each with one line that names the place in the file.
"""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from registry.errors import BadInput
from registry.names import check_name

# A recipe is a page of text; anything larger is a mistake or an attack.
LARGEST_FILE = 64 * 1024
# The first problems help; a long list of them hides the first.
MOST_PROBLEMS = 3


def _check_name(value: str) -> str:
    try:
        return check_name(value, what="name")
    except BadInput as error:
        raise ValueError(str(error)) from error


Name = Annotated[str, AfterValidator(_check_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
# What every generator accepts, and canonical JSON holds exactly.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Part(BaseModel):
    """Base of every part of a file: it refuses unknown keys, NaN and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


P = TypeVar("P", bound=Part)


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (a few lines can expand to gigabytes) and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError(f"aliases are not allowed (line {self.peek_event().start_mark.line + 1})")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # As text: 1 and "1" are two keys to YAML, and one to every reader of a recipe.
        keys = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
        if repeated := [key for position, key in enumerate(keys) if key in keys[:position]]:
            raise yaml.YAMLError(f"key {repeated[0]!r} is given twice (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


def parse_yaml(model: type[P], path: Path) -> P:
    """Read a YAML file into a pydantic model.

    Raises:
        BadInput: unreadable, too large, not YAML, or not what the model asks for; names the place in the file.
    """
    try:
        return model.model_validate_json(json.dumps(_read_yaml(path), allow_nan=True))
    except ValidationError as error:
        problems = "; ".join(_describe_problem(problem) for problem in error.errors()[:MOST_PROBLEMS])
        unlisted = error.error_count() - MOST_PROBLEMS
        raise BadInput(f"{path}: {problems}{f'; and {unlisted} more' if unlisted > 0 else ''}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} has a value of a type that no key takes: {error}") from error


# flows/inputs/recipe.py imports this name.


def _read_yaml(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)  # not stat: a device or a pipe has no size
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {getattr(error, 'strerror', error)}; check the path") from error
    if len(content) > LARGEST_FILE:
        raise BadInput(
            f"{path} is larger than {LARGEST_FILE // 1024} KB: a recipe or fleet file is a page of text; check the path"
        )
    try:
        return yaml.load(content.decode(), _Loader)  # noqa: S506 - a SafeLoader, made stricter
    except Exception as error:  # PyYAML's constructors leak KeyError, IndexError, AttributeError, OverflowError
        one_line = " ".join(str(error).split())
        printable = "".join(character if character.isprintable() else "?" for character in one_line)
        raise BadInput(f"{path} is not valid YAML: {printable}") from error


def _describe_problem(problem: ErrorDetails) -> str:
    place = ".".join(_quote_key(step) for step in problem["loc"]) or "the file"
    if problem["type"] == "extra_forbidden":
        return f"{place}: there is no such key; check its spelling against docs/recipes.md"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"


def _quote_key(step: int | str) -> str:
    """Return a key as it stands in the file; quote and cut one that would break the line or the terminal."""
    key = str(step)
    return key if key.isprintable() and len(key) <= 60 else repr(key[:60])
