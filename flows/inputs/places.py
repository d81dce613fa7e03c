"""What belongs at each place of a recipe or fleet file: its kind, its limits and an example, from the JSON schema.

`read_schema(model)` returns the top of a file; `find_place(top, steps)` the place to which keys and positions lead.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

_KINDS = {"object": "a mapping", "array": "a list", "string": "a text", "integer": "a whole number",
          "number": "a number", "boolean": "true or false"}  # fmt: skip
_LIMITS = {"object": ("minProperties", "maxProperties"), "array": ("minItems", "maxItems"),
           "string": ("minLength", "maxLength")}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A place in a file: its JSON schema, the whole file's, and an example of what stands there (None: unknown)."""

    schema: Mapping[str, Any]
    root: Mapping[str, Any]
    example: Any = None

    @classmethod
    def of(cls, schema: Mapping[str, Any], root: Mapping[str, Any], example: Any = None) -> "Place":
        """Follow references, and take an optional value for the value itself."""
        while True:
            if "$ref" in schema:
                target = root["$defs"][schema["$ref"].rpartition("/")[2]]
            elif "anyOf" in schema:
                target = next(branch for branch in schema["anyOf"] if branch.get("type") != "null")
            else:
                break
            schema = target | {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
        own = schema["examples"][0] if "examples" in schema else None
        known = (found for found in (own, example, schema.get("default")) if found is not None)
        return cls(schema, root, next(known, None))

    @property
    def keys(self) -> Mapping[str, Any]:
        """The schemas of the keys that the place can have."""
        keys: Mapping[str, Any] = self.schema.get("properties", {})
        return keys

    def step(self, step: int | str) -> "Place":
        """Return the place below this one: an entry of a list, or the value of a key."""
        if isinstance(step, int):
            return Place.of(self.schema["items"], self.root, self.example[0] if self.example else None)
        example = self.example if isinstance(self.example, dict) else {}
        if step in self.keys:
            return Place.of(self.keys[step], self.root, example.get(step))
        return Place.of(self.schema["additionalProperties"], self.root, next(iter(example.values()), None))

    def describe(self) -> str:
        """Say what to write here, with its limits: "a whole number from 1 to 8"."""
        schema = self.schema
        if "enum" in schema:
            return f"one of {', '.join(map(str, schema['enum']))}"
        if schema["type"] == "object":
            required = schema.get("required")
            return join_words(required) if required else _KINDS["object"] + _describe_limits(schema)
        # A docstring describes a mapping; here, the author of the field wrote what its pattern means.
        return str(schema.get("description", _KINDS[schema["type"]])) + _describe_limits(schema)


class _InOrder(GenerateJsonSchema):
    """Keep the order of the keys of an example: min, opt, max."""

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:  # noqa: ARG002
        return value


@cache
def read_schema(model: type[BaseModel]) -> Place:
    """Return the top of the files that a model reads."""
    schema = model.model_json_schema(schema_generator=_InOrder)
    return Place.of(schema, schema)


def find_place(top: Place, steps: Iterable[int | str]) -> Place:
    """Return the place to which the steps lead."""
    field = top
    for step in steps:
        field = field.step(step)
    return field


def write_flow(value: Any) -> str:
    """Write a value as YAML on one line, as it stands in a recipe."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


def _describe_limits(schema: Mapping[str, Any]) -> str:
    kind = schema["type"]
    low, high = (schema.get(name) for name in _LIMITS.get(kind, ("minimum", "maximum")))
    if kind in _LIMITS:
        unit = {"object": "keys", "array": "entries", "string": "characters"}[kind]
        if high is not None:
            return f" of {low} to {high} {unit}"
        return f" of at least {low} {unit}" if low is not None and low > 1 else ""
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']:g}"
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - 1
    return "" if low is None else f" from {low:,} to {high:,}"


def join_words(words: Sequence[str]) -> str:
    """Join words as a sentence does: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
