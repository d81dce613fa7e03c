"""Labels of rows and classes of checkpoints: read, compared, and numbered as the model numbers them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.records import ModelSource

# What transformers calls classes that nobody named.
_UNNAMED = re.compile(r"LABEL_\d+")
# What reads a waveform, of what Optimum exports: heads of texts and of audio have the same names.
AUDIO_MODELS = frozenset(
    (
        "wav2vec2",
        "wav2vec2-conformer",
        "hubert",
        "wavlm",
        "unispeech",
        "unispeech-sat",
        "sew",
        "sew-d",
        "data2vec-audio",
    )
)
# What reads a spectrogram that has one size, and gives labels.
SPECTROGRAM_MODELS = frozenset(("audio-spectrogram-transformer",))
AUDIO_TASKS = ("audio-classification", "automatic-speech-recognition")
# A number as a CSV file writes it, with ".0" where the column once lacked values.
_WHOLE_NUMBER = re.compile(r"([0-9]{1,9})(\.0+)?")


def read_label(value: object) -> int | str | None:
    """Return a whole number, or a name without space around it; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        number = _WHOLE_NUMBER.fullmatch(value.strip())
        return int(number[1]) if number else value.strip() or None
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
    their own (LABEL_0, LABEL_1, …) takes the dataset's numbers as they are. Whole numbers are the names of classes
    where the model has such names, else its numbers.

    Raises:
        BadInput: a label is not one of the model's, or could be the name of one class and the number of another;
            `origin` names the dataset.
    """
    names = _choose_names(dataset_classes, source)
    named = [read_label(names[label]) if names and isinstance(label, int) else label for label in labels]
    numbers = {_fold_case(read_label(name)): number for number, name in enumerate(source.classes)}
    if _are_numbers(named, numbers, source, are_named=names is not None):
        numbers = {number: number for number in range(len(source.classes))}
    found = [numbers.get(_fold_case(label), -1) for label in named]
    if strange := {str(label) for label, number in zip(named, found, strict=True) if number < 0}:
        raise BadInput(
            f"the labels of {origin} ({', '.join(sorted(strange)[:3])}) are not among the classes of "
            f"{source.name} ({', '.join(source.classes)}): use the dataset that the model was trained for"
        )
    return found


def _choose_names(dataset_classes: Sequence[str] | None, source: ModelSource) -> Sequence[str] | None:
    """Return the dataset's names of classes, where the model has names too or other numbers of them.

    Raises:
        BadInput: the names are numbers in another order, and the model has no names.
    """
    if not dataset_classes or len(dataset_classes) != len(source.classes):
        return dataset_classes
    if not all(_UNNAMED.fullmatch(name) for name in source.classes):
        return dataset_classes
    own, order = [read_label(name) for name in dataset_classes], list(range(len(dataset_classes)))
    if own != order and set(own) == set(order):
        raise _two_meanings(own, source)
    return None


def _are_numbers(
    labels: Sequence[int | str | None],
    numbers: Mapping[int | str | None, int],
    source: ModelSource,
    *,
    are_named: bool,
) -> bool:
    """Tell whether labels are the model's numbers, and not names of its classes that look like numbers.

    Raises:
        BadInput: they could be both, and differ.
    """
    found = set(labels)
    if not all(isinstance(label, int) for label in found):
        return False
    if not found <= numbers.keys():
        return True
    are_swapped = any(numbers[label] != label for label in found)
    if are_swapped and not are_named and found <= set(range(len(source.classes))):
        raise _two_meanings(found, source)
    return False


def _two_meanings(labels: Iterable[int | str | None], source: ModelSource) -> BadInput:
    shown = ", ".join(sorted(map(str, labels))[:3])
    return BadInput(
        f"the labels {shown} could be names or numbers of the classes of {source.name} ({', '.join(source.classes)}): "
        "store the classes' names in the dataset, or in the checkpoint's id2label"
    )


def _fold_case(label: int | str | None) -> int | str | None:
    return label.casefold() if isinstance(label, str) else label


def check_head(config: Mapping[str, Any], task: str, head: str | tuple[str, ...]) -> None:
    """Check by config.json that a checkpoint's architecture ends in `head`, or one of several, where it names one.

    Raises:
        BadInput: it has another head, or none.
    """
    _check_what_is_read(config, task)
    architectures = [str(name) for name in config.get("architectures") or ()]
    if architectures and not any(name.endswith(head) for name in architectures):
        fit = ", or fit a head with source.head" if task == "text-classification" else ""
        raise BadInput(
            f"the checkpoint is a {architectures[0][:80]}, which has no head for {task}: use a fine-tuned "
            f"checkpoint{fit}"
        )


def _check_what_is_read(config: Mapping[str, Any], task: str) -> None:
    """Check that a task of audio gets a model of audio, and any other task none."""
    kind = config.get("model_type")
    known = AUDIO_MODELS | SPECTROGRAM_MODELS if task == AUDIO_TASKS[0] else AUDIO_MODELS
    if kind in known | SPECTROGRAM_MODELS and task not in AUDIO_TASKS:
        uses = " or ".join(AUDIO_TASKS if kind in AUDIO_MODELS else AUDIO_TASKS[:1])
        raise BadInput(f"the checkpoint is a {kind}, which reads audio: use task: {uses}")
    if kind not in known and task in AUDIO_TASKS:
        or_what = " or a spectrogram" if known > AUDIO_MODELS else ""
        raise BadInput(
            f"the checkpoint is a {str(kind)[:60]}, and {task} takes networks that read a waveform{or_what} and export "
            f"to one graph: {', '.join(sorted(known))}"
        )


def check_one_label(config: Mapping[str, Any], *, of: str) -> None:
    """Check by config.json that a checkpoint gives one label per text or image.

    Raises:
        BadInput: it gives several labels or a number.
    """
    kind = config.get("problem_type")
    if kind not in (None, "single_label_classification"):
        raise BadInput(
            f"the checkpoint's problem_type is {str(kind)[:80]!r}: only one label per {of} is supported"
            f"{_name_task(kind, of)}"
        )
    if len(config.get("id2label") or range(config.get("num_labels") or 2)) < 2:
        use = _name_task("regression", of)
        raise BadInput(f"the checkpoint gives one number per {of} (regression): only labels are supported{use}")


def _name_task(kind: object, of: str) -> str:
    tasks = {"multi_label_classification": "multi-label-classification", "regression": "text-regression"}
    return f"; use task: {tasks[str(kind)]}" if of == "text" and str(kind) in tasks else ""


def compute_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return probabilities over the last axis, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    shares: NDArray[np.float64] = shifted / shifted.sum(axis=-1, keepdims=True)
    return shares


def show_value(value: object) -> str:
    """Return a value with its type, short, for an error."""
    return f"{type(value).__name__} {value!r:.60}"
