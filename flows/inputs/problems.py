"""What is wrong with a recipe or fleet file, in sentences that say what to write instead.

`describe_problems(model, error)` reads pydantic's errors by their type and place alone, and never passes on its words:
the allowed values, limits and examples come from the model's JSON schema.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flows.inputs.places import Place, find_place, join_words, read_schema, write_flow

# The first problems help; a long list of them hides the first. Missing keys are always named, all of them.
MOST_PROBLEMS = 3
_LONGEST_VALUE = 60
_WRONG = "{0.place}: give {0.wanted}{0.such_as}, not {0.given}"
_WRONG_SIZE = "{0.place}: give {0.wanted}{0.such_as}, not {0.size}"
# Where a choice has another value of the choice's own type, the nearest one helps most.
_NO_SUCH_KEY, _NO_SUCH_CHOICE = "{0.inside}there is no key `{0.key}`{0.nearest_key}", "{0.place}: {0.refused_choice}"
SENTENCES: Mapping[str, str] = {
    "extra_forbidden": _NO_SUCH_KEY,
    "enum": _NO_SUCH_CHOICE,
    "value_error": "{0.place}: {0.reason}",
    "model_type": _WRONG,
    "dict_type": _WRONG,
    "tuple_type": _WRONG,
    "string_type": _WRONG,
    "int_type": _WRONG,
    "float_type": _WRONG,
    "bool_type": _WRONG,
    "finite_number": _WRONG,
    "greater_than": _WRONG,
    "greater_than_equal": _WRONG,
    "less_than": _WRONG,
    "less_than_equal": _WRONG,
    "string_pattern_mismatch": _WRONG,
    "string_too_short": _WRONG,
    "too_short": _WRONG_SIZE,
    "too_long": _WRONG_SIZE,
    "json_invalid": "the file nests its values too deeply: write it as docs/recipes.md shows",
}


@dataclass(frozen=True)
class Problem:
    """One of pydantic's errors, as the parts of a sentence; `steps` lead to it from the top of the file."""

    steps: tuple[int | str, ...]
    kind: str
    value: Any
    reason: str
    top: Place

    @property
    def key(self) -> str:
        """The last step, as it stands in the file."""
        return quote_key(self.steps[-1])

    @property
    def place(self) -> str:
        """Where it is: `profiles.0.batch`."""
        return join_place(self.steps) or f"the {self.top.schema['title']}"

    @property
    def inside(self) -> str:
        """What the key stands in, with a colon; nothing at the top."""
        return f"{join_place(self.steps[:-1])}: " if self.steps[1:] else ""

    @property
    def field(self) -> Place:
        """What belongs there."""
        return find_place(self.top, self.steps)

    @property
    def wanted(self) -> str:
        """What to write there."""
        return self.field.describe()

    @property
    def such_as(self) -> str:
        """An example of it, after `such as`."""
        example = self.field.example
        return "" if example is None else f", such as {write_flow(example)}"

    @property
    def given(self) -> str:
        """What stands there."""
        return describe_value(self.value)

    @property
    def size(self) -> str:
        """How many entries or keys stand there."""
        return str(len(self.value)) if self.value else self.given

    @property
    def refused_choice(self) -> str:
        """The value that is none of a choice, with the nearest that is."""
        choices = [str(choice) for choice in self.field.schema["enum"]]
        if not isinstance(self.value, str):
            return f"give {self.wanted}, not {self.given}"
        noun = self.field.schema["title"].lower()
        return f"there is no {noun} `{quote_key(self.value)}`: {_suggest(self.value, choices)}"

    @property
    def nearest_key(self) -> str:
        """After an unknown key: the nearest known one, or where it belongs, or all that there are."""
        parent = find_place(self.top, self.steps[:-1])
        key = str(self.steps[-1])
        homes = [name for name in parent.keys if key in parent.step(name).keys]
        return f" here: it belongs in {homes[0]}" if homes else f": {_suggest(key, list(parent.keys))}"


def describe_problems(model: type[BaseModel], error: ValidationError) -> str:
    """Say in one line what is wrong with a file: first all keys that are missing, then the first other problems."""
    top = read_schema(model)
    errors = error.errors(include_url=False)
    # A list whose entries were refused counts as too short: that says nothing new.
    refused = {details["loc"][:depth] for details in errors for depth in range(len(details["loc"]))}
    others = [
        _describe_problem(top, details)
        for details in errors
        if details["type"] != "missing" and not (details["type"] == "too_short" and details["loc"] in refused)
    ]
    unlisted = [f"and {len(others) - MOST_PROBLEMS} more"] if len(others) > MOST_PROBLEMS else []
    missing = [details["loc"] for details in errors if details["type"] == "missing"]
    return "; ".join([*_describe_missing(top, missing), *others[:MOST_PROBLEMS], *unlisted])


def describe_value(value: Any) -> str:
    """Say what somebody wrote: a list and a mapping by their kind, everything else by its value."""
    match value:
        case None:
            return "an empty value"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value[:_LONGEST_VALUE]!r}" if value else "an empty text"
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return f"the number {str(value)[:_LONGEST_VALUE]}"


def join_place(steps: Iterable[int | str]) -> str:
    """Write a place as its keys and positions, joined by dots."""
    return ".".join(quote_key(step) for step in steps)


def quote_key(step: int | str) -> str:
    """Return a key as it stands in the file; quote and cut one that would break the line or the terminal."""
    key = str(step)
    return key if key.isprintable() and len(key) <= _LONGEST_VALUE else repr(key[:_LONGEST_VALUE])


def _describe_problem(top: Place, details: ErrorDetails) -> str:
    # The mark of a key, as against its value: a key of ours says itself what it is.
    steps = tuple(step for step in details["loc"] if step != "[key]")
    reason = str(details.get("ctx", {}).get("error", ""))
    problem = Problem(steps, details["type"], details["input"], reason, top)
    return SENTENCES.get(problem.kind, _WRONG).format(problem)


def _describe_missing(top: Place, places: Sequence[tuple[int | str, ...]]) -> list[str]:
    """Write one sentence for each mapping that lacks keys; mappings that lack the same keys share one."""
    keys: dict[tuple[int | str, ...], list[str]] = {}
    for *parent, key in places:
        keys.setdefault(tuple(parent), []).append(str(key))
    parents: dict[tuple[str, ...], list[tuple[int | str, ...]]] = {}
    for place, lacking in keys.items():
        parents.setdefault(tuple(lacking), []).append(place)
    sentences = []
    for names, where in parents.items():
        field = find_place(top, where[0])
        examples = [f"{name}: {write_flow(field.step(name).example)}" for name in names]
        subject = join_words([join_place(place) or f"the {top.schema['title']}" for place in where])
        verb, it = "lacks" if len(where) == 1 else "lack", "it" if len(names) == 1 else "them"
        sentences.append(f"{subject} {verb} {join_words(names)}: add {it}, such as {join_words(examples)}")
    return sentences


def _suggest(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word[:_LONGEST_VALUE].lower(), choices, n=1)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}"
