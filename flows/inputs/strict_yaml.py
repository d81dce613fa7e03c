"""A strict YAML reader for files that people write: recipes and fleet files.

`parse_yaml(model, path)` reads a file into a pydantic model. Aliases, repeated keys, unknown keys, NaN and values of
another type are refused, each with one line that names the place in the file.
"""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flows.inputs.problems import describe_problems
from registry.errors import BadInput
from registry.names import check_name

# A recipe is a page of text; anything larger is a mistake or an attack.
LARGEST_FILE = 64 * 1024


def _check_name(value: str) -> str:
    try:
        return check_name(value, what="name")
    except BadInput as error:
        raise ValueError(str(error)) from error


Name = Annotated[str, AfterValidator(_check_name)]
Sha256 = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{64}$", description="64 lower-case hex digits",
        examples=["53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"],
    ),
]  # fmt: skip
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


class _NotAllowed(Exception):
    """Something that YAML allows, and a file that people write should not have."""


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (a few lines can expand to gigabytes) and without repeated keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            raise _NotAllowed(f"aliases are not allowed (line {line}): write the value again instead")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # As text: 1 and "1" are two keys to YAML, and one to every reader of a recipe.
        keys = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
        if repeated := [key for position, key in enumerate(keys) if key in keys[:position]]:
            raise _NotAllowed(
                f"key {repeated[0][:60]!r} is given twice (line {node.start_mark.line + 1}): keep one of them"
            )
        return super().construct_mapping(node, deep)


def parse_yaml(model: type[P], path: Path) -> P:
    """Read a YAML file into a pydantic model.

    Raises:
        BadInput: unreadable, too large, not YAML, or not what the model asks for; names the place in the file.
    """
    document = _read_yaml(path)
    if document is None:
        document = {}  # of an empty file, what it lacks is said
    try:
        return model.model_validate_json(json.dumps(document, allow_nan=True))
    except ValidationError as error:
        raise BadInput(f"{path}: {describe_problems(model, error)}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(
            f"{path} has a value that no key takes, such as a date or a set: write it as text, in quotes"
        ) from error


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
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not valid YAML: it is not text in UTF-8; save it as UTF-8") from error
    except _NotAllowed as error:
        raise BadInput(f"{path} cannot be taken: {error}") from error
    except Exception as error:  # PyYAML's constructors leak KeyError, IndexError, AttributeError, OverflowError
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadInput(
            f"{path} is not valid YAML{place}: check its indentation and colons, and close quotes and brackets"
        ) from error
