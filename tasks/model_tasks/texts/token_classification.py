"""Token classification: words in, one of the model's tags per word out, judged by the F1 of whole entities."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, EncodedSizes, Encoder, Metric, OfSums, Scores, ShownAnswer
from tasks.model_tasks.inputs.texts import EXAMPLE_TEXTS, LONGEST_TEXT, check_text
from tasks.model_tasks.inputs.words import (
    WordEncoder,
    Words,
    measure_words,
    open_word_encoder,
    read_words,
    split_words,
)
from tasks.model_tasks.labels import check_head, compute_softmax, number_labels, read_label, show_value
from tasks.model_tasks.scores import compute_f1, compute_ratio
from tasks.model_tasks.texts.text_task import TextTask

CUT = -1
OUTSIDE = "O"
# The chunk tags of IOB, IOB2, IOE, IOBES and BILOU; a model whose tags have none tags each word by itself.
_CHUNK_TAGS = ("B-", "I-", "E-", "S-", "L-", "U-")
Entity = tuple[str, int, int]


@dataclass(frozen=True)
class Tags:
    """The tag of each word, as the model numbers them, and the model's names for them."""

    numbers: tuple[int, ...]
    classes: tuple[str, ...]


def find_entities(numbers: Sequence[int], classes: Sequence[str]) -> set[Entity]:
    """Return the entities of a row of tags as (type, first word, last word).

    seqeval decides what an entity is, as CoNLL's own script does (https://github.com/chakki-works/seqeval); where no
    tag says how words belong together, each word with a tag other than O is one.
    """
    from seqeval.metrics.sequence_labeling import get_entities  # brings scikit-learn, a second

    names = [classes[number] for number in numbers]
    if not any(name.startswith(_CHUNK_TAGS) for name in classes):
        return {(name, at, at) for at, name in enumerate(names) if name != OUTSIDE}
    return {(kind, first, last) for kind, first, last in get_entities(names)}


def count_entities(answers: Answers, targets: Sequence[Tags], _reference: Answers) -> Scores:
    """Return (right, wrong, missed) entities of each row, [rows, 3]; words that were cut off are not scored."""
    counts = np.zeros((len(answers), 3))
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        seen = [at for at, number in enumerate(answer) if number != CUT]
        given = find_entities([int(answer[at]) for at in seen], target.classes)
        true = find_entities([target.numbers[at] for at in seen], target.classes)
        counts[row] = len(given & true), len(given - true), len(true - given)
    return counts


def count_tags(answers: Answers, targets: Sequence[Tags], _reference: Answers) -> Scores:
    """Return (words tagged right, words) of each row, [rows, 2]."""
    counts = np.zeros((len(answers), 2))
    for row, (answer, target) in enumerate(zip(answers, targets, strict=True)):
        seen = answer != CUT
        counts[row] = (answer[seen] == np.asarray(target.numbers)[seen]).sum(), seen.sum()
    return counts


ENTITY_F1 = Metric("entity_f1", "share", count_entities, OfSums(compute_f1))
TAG_ACCURACY = Metric("tag_accuracy", "share", count_tags, OfSums(compute_ratio))


@dataclass(frozen=True)
class FoundEntity:
    """An entity of a text; `score` is the mean softmax probability of its words' tags."""

    text: str
    type: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class TaggedText:
    """The entities of a text, in its order."""

    text: str
    entities: tuple[FoundEntity, ...]

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        found = ", ".join(f"{entity.type} {entity.text!r} ({entity.score:.0%})" for entity in self.entities)
        return f"{found or 'no entity'}  {self.text}"


@dataclass(frozen=True)
class TokenClassification(TextTask):
    """One tag per word; output 0 of the graph is logits [batch, tokens, tags], the first token answers for its word."""

    name: str = "token-classification"
    columns: tuple[str, ...] = ("words", "tags")
    answer_axes: tuple[str, ...] = ("batch", "sequence", "labels")
    row_needs: str = "a list of words and as many tags"
    export_task: str = "token-classification"
    metrics: tuple[Metric, ...] = (ENTITY_F1, TAG_ACCURACY)

    @property
    def example_inputs(self) -> tuple[Words, ...]:
        """A short row and a longer one."""
        return tuple(split_words(text)[0] for text in EXAMPLE_TEXTS)

    def read_row(self, row: Mapping[str, Any], classes: Sequence[str] | None) -> tuple[Words, tuple[Any, ...]] | None:
        """Return (words, tags) where there are as many tags as words, each a number or a name of the dataset's."""
        words = read_words(row["words"])
        if words is None or sum(map(len, words)) > LONGEST_TEXT or not isinstance(row["tags"], list | tuple):
            return None
        tags = tuple(read_label(tag) for tag in row["tags"])
        most = len(classes) if classes else 2**31
        is_known = all(isinstance(tag, str) or (tag is not None and 0 <= tag < most) for tag in tags)
        return (words, tags) if len(tags) == len(words) and is_known else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the words or the tags of a row."""
        if (words := read_words(row["words"])) is None:
            return f"the words are {show_value(row['words'])}: name the column with lists of words in data.words"
        tags = row["tags"]
        if not isinstance(tags, list | tuple):
            return f"the tags are {show_value(tags)}: name the column with lists of tags in data.tags"
        if len(tags) != len(words):
            return f"there are {len(words)} words and {len(tags)} tags: give each word one"
        return f"the tags are {show_value(tags)}: give whole numbers, counted from 0, or names of classes"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:
        """Give the tags the model's numbers: names are matched without case, and never swapped.

        Raises:
            BadInput: a tag is not one of the model's.
        """
        flat = [tag for tags in rows.targets for tag in tags]
        numbers = iter(number_labels(flat, rows.classes, source, rows.source))
        return replace(
            rows, targets=tuple(Tags(tuple(next(numbers) for _ in tags), source.classes) for tags in rows.targets)
        )

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint has a head that gives one tag per token.

        Raises:
            BadInput: it has another head or none.
        """
        check_head(config, self.name, "ForTokenClassification")

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> WordEncoder:
        """Open the folder's tokenizer.json; rows are cut at the longest sequence."""
        return open_word_encoder(folder, input_names, largest)

    def measure_inputs(self, folder: Path, inputs: Sequence[Words], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode words with the folder's tokenizer.json, which nobody has tried."""
        return measure_words(folder, inputs, largest)

    def read_question(self, text: str) -> Words:
        """Return the words of a text that a user asks a bundle.

        Raises:
            BadInput: it has none.
        """
        check_text(text)
        if not (words := split_words(text)[0]):
            raise BadInput("an empty text has no answer: give words")
        return words

    def write_request(self, row_input: Words) -> bytes:
        """Return the words as a text in UTF-8."""
        return " ".join(row_input).encode()

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Words], encoder: Encoder) -> Answers:
        """Return the tag with the largest logit of each word's first token, int64 [words]; -1 where it was cut off."""
        best = outputs[0].argmax(axis=-1)
        return [
            np.where(first < 0, CUT, row[np.maximum(first, 0)])
            for row, first in zip(best, _find_first_tokens(encoder, inputs), strict=True)
        ]

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        questions: Sequence[str],
        classes: Sequence[str],
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the entities of each text."""
        split = [split_words(text) for text in questions]
        firsts = _find_first_tokens(encoder, [words for words, _ in split])
        return [
            TaggedText(text, tuple(_show_entities(text, spans, logits, first, classes)))
            for text, (_, spans), logits, first in zip(questions, split, outputs[0], firsts, strict=True)
        ]


def _find_first_tokens(encoder: Encoder, inputs: Sequence[Words]) -> list[NDArray[np.int64]]:
    if not isinstance(encoder, WordEncoder):
        raise TypeError(f"{type(encoder).__name__} is no encoder of words")
    return encoder.find_first_tokens(inputs)


def _show_entities(
    text: str, spans: Sequence[tuple[int, int]], logits: NDArray[Any], first: NDArray[np.int64], classes: Sequence[str]
) -> Iterator[FoundEntity]:
    shares = compute_softmax(logits)[first[first >= 0]]
    numbers = [int(number) for number in shares.argmax(axis=-1)]
    for kind, begin, last in sorted(find_entities(numbers, classes), key=lambda entity: entity[1]):
        start, end = spans[begin][0], spans[last][1]
        yield FoundEntity(text[start:end], kind, start, end, float(shares[begin : last + 1].max(axis=-1).mean()))


TOKEN_CLASSIFICATION = TokenClassification()
