"""Labels of rows and classes of checkpoints: read, compared, and numbered as the model numbers them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.records import ModelSource

# What transformers calls classes that nobody named.
_UNNAMED = re.compile(r"LABEL_\d+")


def read_label(value: object) -> int | str | None:
    """Return a whole number, or a name without space around it; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return value.strip() or None
    return int(value) if isinstance(value, int) else None


def read_known_label(value: object, classes: Sequence[str] | None) -> int | str | None:
    """Return a row's label: a name, or a number that the dataset's `classes` have; None for anything else."""
    label = read_label(value)
    if isinstance(label, int) and not 0 <= label < (len(classes) if classes else 2**31):
        return None
    return label


def explain_label(value: object, *, of: str) -> str:
    """Return, for an error, what is wrong with the label of a text or image."""
    if isinstance(value, list | tuple):
        return f"the label is {show_value(value)}: several labels per {of} are not supported, give one"
    return f"the label is {show_value(value)}: give a whole number, counted from 0, or the name of a class"


def number_labels(
    labels: Sequence[int | str], dataset_classes: Sequence[str] | None, source: ModelSource, origin: str
) -> list[int]:
    """Return the model's number of each label: names are matched without case, and never swapped.

    Numbers are those of `dataset_classes`, where the dataset names its classes. A model whose classes have no names of
    their own (LABEL_0, LABEL_1, …) takes the dataset's numbers as they are.

    Raises:
        BadInput: a label is not one of the model's; `origin` names the dataset.
    """
    numbers = {name.casefold(): number for number, name in enumerate(source.classes)}
    unnamed = all(_UNNAMED.fullmatch(name) for name in source.classes)
    names = dataset_classes
    if names and unnamed and len(names) == len(source.classes):
        names = None
    named = [names[label] if names and isinstance(label, int) else label for label in labels]
    found = [numbers.get(label.casefold(), -1) if isinstance(label, str) else label for label in named]
    strange = {
        str(label) for label, number in zip(named, found, strict=True) if number < 0 or number >= len(source.classes)
    }
    if strange:
        raise BadInput(
            f"the labels of {origin} ({', '.join(sorted(strange)[:3])}) are not among the classes of "
            f"{source.name} ({', '.join(source.classes)}): use the dataset that the model was trained for"
        )
    return found


def check_head(config: Mapping[str, Any], task: str, head: str) -> None:
    """Check by config.json that a checkpoint's architecture ends in `head`, where it names one.

    Raises:
        BadInput: it has another head, or none.
    """
    architectures = [str(name) for name in config.get("architectures") or ()]
    if architectures and not any(name.endswith(head) for name in architectures):
        fit = ", or fit a head with source.head" if task == "text-classification" else ""
        raise BadInput(
            f"the checkpoint is a {architectures[0][:80]}, which has no head for {task}: use a fine-tuned "
            f"checkpoint{fit}"
        )


def check_one_label(config: Mapping[str, Any], *, of: str) -> None:
    """Check by config.json that a checkpoint gives one label per text or image.

    Raises:
        BadInput: it gives several labels or a number.
    """
    kind = config.get("problem_type")
    if kind not in (None, "single_label_classification"):
        raise BadInput(f"the checkpoint's problem_type is {str(kind)[:80]!r}: only one label per {of} is supported")
    if len(config.get("id2label") or range(config.get("num_labels") or 2)) < 2:
        raise BadInput(f"the checkpoint gives one number per {of} (regression): only labels are supported")


def compute_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return probabilities over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares


def show_value(value: object) -> str:
    """Return a value with its type, short, for an error."""
    return f"{type(value).__name__} {value!r:.60}"
