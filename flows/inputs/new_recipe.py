"""A first recipe for a checkpoint and a dataset: what can be read from them is filled in, and comments teach the rest.

`draft_recipe` reads config.json, the tokenizer and the splits of a folder; it downloads only a hub model's small files,
and no hub dataset.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration_data.columns import Column, read_columns
from calibration_data.splits import find_split, list_splits
from flows.inputs.places import write_flow
from registry.errors import BadInput
from registry.names import check_name
from registry.records import NEW_TOKENS
from tasks.checkpoints.config import read_config
from tasks.checkpoints.encoder import try_encoder
from tasks.checkpoints.source import download_texts, list_checkpoint
from tasks.model_tasks import MODEL_TASKS, ModelTask
from tasks.model_tasks.images.boxes import guess_box_format
from tasks.model_tasks.inputs.texts import UNLIMITED_TOKENS
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tasks.model_tasks.texts.text_regression import QUERY
from tasks.quantization.holdout import rows_to_prove

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
EVALUATION_SPLITS = ("evaluation", "validation", "test", "dev", "eval")
CALIBRATION_SPLITS = ("calibration", "train", "training", "fit")
# What people call the columns of a task.
COLUMN_NAMES: Mapping[str, tuple[str, ...]] = {
    "text": (
        "text",
        "sentence",
        "content",
        "review",
        "document",
        "question",
        "title",
        "sentence1",
        "text1",
        "premise",
        "question1",
        "query",
    ),
    "text_pair": ("text_pair", "sentence2", "text2", "hypothesis", "question2", "passage"),
    "label": ("label", "labels", "class", "category", "target", "sentiment"),
    "labels": (
        "labels",
        "topics",
        "categories",
        "objects.category",
        "objects.label",
        "objects.labels",
        "objects.categories",
        "annotations.category",
        "annotations.category_id",
    ),
    "query": ("query", "question"),
    "score": ("score", "similarity", "similarity_score", "relevance"),
    "image": ("image", "img", "picture"),
    "boxes": ("boxes", "bbox", "bboxes", "objects.bbox", "objects.boxes", "objects.box", "annotations.bbox"),
    "mask": ("mask", "annotation", "segmentation", "label", "labels"),
    "audio": ("audio", "sound", "clip", "speech"),
    "target": ("target", "target_text", "summary", "highlights", "translation", "title"),
    "transcript": ("transcript", "transcription", "sentence", "text", "normalized_text"),
    "token": ("token", "masked_token"),
    "words": ("words", "tokens"),
    "tags": ("tags", "ner_tags", "pos_tags"),
}
BOX_NOTE = "   # guessed; coco: left, top, width, height; pascal_voc: left, top, right, bottom; yolo: shares"
# Limits on the loss of quality, the strictest first: a recipe gets the first that its evaluation rows can prove.
LOSS_LIMITS = (0.01, 0.02, 0.05)
# Enough texts to know how long they are.
MEASURED_TEXTS = 1000
LONGEST_SHARE = 0.99
DEFAULT_LENGTHS = (32, 128)
NEW_TOKENS_LIMITS = (64, 32, 16, 8, 4)
LONGEST_AUDIO = 160_000
# Columns of texts that a network reads one behind the other.
READ_TOGETHER = ("query", "question", "text", "text_pair", "context")


@dataclass(frozen=True)
class Origin:
    """A checkpoint or a dataset as a person named it: a folder, or an id of the hub."""

    name: str
    is_hub: bool

    @property
    def key(self) -> str:
        """The keys of a recipe that name it."""
        name = write_flow(self.name)
        return f"hub: {name}\n  revision: main   # resolved to a commit" if self.is_hub else f"path: {name}"


@dataclass(frozen=True)
class Data:
    """What a recipe says of a dataset; `rows` are its evaluation rows, 0 where they were not read."""

    origin: Origin
    columns: tuple[tuple[str, str], ...] = ()
    calibration: str = "calibration"
    evaluation: str = "evaluation"
    rows: int = 0
    texts: tuple[Any, ...] = ()


def find_origin(name: str, what: str) -> Origin:
    """Tell a folder from a hub's id.

    Raises:
        BadInput: it is neither; `what` is what it should be.
    """
    if Path(name).is_dir():
        return Origin(name, is_hub=False)
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return Origin(name, is_hub=True)
    raise BadInput(f"{name[:100]} is no folder, and no id of the hub such as org/name: name the {what}")


def draft_recipe(checkpoint: Origin, data: Origin, targets: Sequence[str], name: str | None = None) -> tuple[str, str]:
    """Return a model's name, and the YAML of a recipe for it on `targets`.

    Raises:
        BadInput: the checkpoint is of no task that there is, or the data has no splits or columns to use.
        EngineryError: the hub does not answer.
    """
    model = check_name(name or _make_name(checkpoint.name), what="model name")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if checkpoint.is_hub else Path(checkpoint.name)
        if checkpoint.is_hub:
            download_texts(checkpoint.name, "main", into=folder)
        else:
            list_checkpoint(folder)
        config = read_config(folder)
        fits = _find_tasks(config)
        task, needs_head = fits[0]
        described = Data(data, tuple((name, name) for name in task.columns))
        if not data.is_hub:
            task, needs_head, described = _describe_data(data, fits)
        usual, longest = _measure_lengths(task, folder, config, described.texts)
        written = _choose_new_tokens(task, config)
        samples = "samples" in task.axes and _fits(task, config, {"samples": LONGEST_AUDIO})
    return model, _write_recipe(
        model, checkpoint, described, targets, _Shape(task, usual, longest, needs_head, written, samples)
    )


def _make_name(origin: str) -> str:
    """Make a model's name of the last part of a folder or hub id."""
    last = Path(origin).name or Path(origin).resolve().name
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")


def _find_tasks(config: Mapping[str, Any]) -> tuple[tuple[ModelTask, bool], ...]:
    """Return the tasks of a checkpoint, and whether each needs a head to be fitted first.

    Raises:
        BadInput: it is of no task that there is.
    """
    found: list[tuple[ModelTask, bool]] = []
    refusals = []
    if [str(kind) for kind in config.get("architectures") or ()] == ["BertModel"]:
        found.append((TEXT_CLASSIFICATION, True))
    # What needs more columns first: pairs with a score are texts too.
    for task in sorted(MODEL_TASKS.values(), key=lambda task: -len(task.columns)):
        try:
            task.check_checkpoint(config)
        except BadInput as error:
            refusals.append(str(error))
        else:
            found.append((task, False))
    if not found:
        raise BadInput("; ".join(refusals))
    return tuple(found)


def _describe_data(origin: Origin, fits: Sequence[tuple[ModelTask, bool]]) -> tuple[ModelTask, bool, Data]:
    """Find splits in a folder, and the first task whose columns they have.

    Raises:
        BadInput: no splits, or columns of no task that fits the checkpoint.
    """
    folder = Path(origin.name)
    splits = list_splits(folder)
    evaluation = next((split for split in EVALUATION_SPLITS if split in splits), None)
    calibration = next((split for split in CALIBRATION_SPLITS if split in splits), None)
    if evaluation is None or calibration is None:
        there = ", ".join(splits) or "no splits"
        raise BadInput(
            f"{origin.name} needs a split to calibrate on ({' or '.join(CALIBRATION_SPLITS)}) and one to judge on "
            f"({' or '.join(EVALUATION_SPLITS)}), each a file such as train.csv or a folder of "
            f"that name: it has {there}"
        )
    find_split(folder, calibration)
    columns = read_columns(find_split(folder, evaluation), MEASURED_TEXTS)
    refusals = []
    for task, needs_head in fits:
        try:
            found = tuple((name, _find_column(name, columns, origin)) for name in task.columns)
        except BadInput as error:
            refusals.append(str(error))
            continue
        optional = ((name, _find_named(name, columns)) for name in task.optional_columns)
        found = (*((name, column) for name, column in optional if column), *found)
        named = tuple((name, column.name) for name, column in found)
        if boxes := dict(found).get("boxes"):
            named = (*named, ("box_format", guess_box_format(boxes.values)))
        rows = _count_proving(dict(found).get(QUERY), columns[0].rows)
        return task, needs_head, Data(origin, named, calibration, evaluation, rows, _list_texts(task, dict(found)))
    raise BadInput(refusals[0])


def _count_proving(query: Column | None, rows: int) -> int:
    """Return how many rows intervals draw, or queries, by the share of different ones among the first."""
    return rows if query is None or not query.values else rows * len({*query.values}) // len(query.values)


def _list_texts(task: ModelTask, found: Mapping[str, Column]) -> tuple[Any, ...]:
    """Return what the network reads of each row: a list of words, a text, or texts that it reads together, joined."""
    together = [found[name].values for name in READ_TOGETHER if name in found and found[name].is_text]
    if task.export_task == "feature-extraction" or not together:
        together = [found[task.columns[0]].values]
    rows = zip(*together, strict=True)
    return tuple(
        " ".join(row) if len(row) > 1 else row[0] for row in rows if all(isinstance(each, str | list) for each in row)
    )


def _find_column(name: str, columns: Sequence[Column], origin: Origin) -> Column:
    """Return the column for one of a task's names; where none is called so, texts are the longest that there are.

    Raises:
        BadInput: there is none.
    """
    if found := _find_named(name, columns):
        return found
    called = COLUMN_NAMES.get(name, (name,))
    others = {*COLUMN_NAMES["label"], *COLUMN_NAMES["text_pair"], *COLUMN_NAMES["target"]}
    texts = [column for column in columns if column.is_text and column.name.lower() not in others]
    if name == "text" and texts:
        return max(texts, key=lambda column: column.mean_length)
    there = ", ".join(column.name for column in columns)
    raise BadInput(
        f"{origin.name} has no column named {' or '.join(called)}, but {there}: rename the one with the {name}, or "
        "write the recipe as docs/recipes.md shows"
    )


def _find_named(name: str, columns: Sequence[Column]) -> Column | None:
    called = COLUMN_NAMES.get(name, (name,))
    return next((column for each in called for column in columns if column.name.lower() == each), None)


def _measure_lengths(task: ModelTask, folder: Path, config: Mapping[str, Any], texts: Sequence[Any]) -> tuple[int, int]:
    """Return how many tokens the texts usually have, and how many nearly all have at most: multiples of 8 and 16."""
    if not texts or "sequence" not in task.axes:
        return DEFAULT_LENGTHS
    lengths = try_encoder(task, folder, texts, {"sequence": UNLIMITED_TOKENS}, config)
    longest = _round_up(float(np.quantile(lengths, LONGEST_SHARE)), 16)
    while longest > 16 and not _fits(task, config, {"sequence": longest}):
        longest -= 16
    return min(_round_up(float(np.median(lengths)), 8), longest), longest


def _choose_new_tokens(task: ModelTask, config: Mapping[str, Any]) -> int:
    """Return the most tokens that a first recipe lets a model write, which it has positions for; 0: it writes none."""
    limits = NEW_TOKENS_LIMITS if NEW_TOKENS in task.axes else ()
    return next((most for most in limits if _fits(task, config, {NEW_TOKENS: most})), 0)


def _fits(task: ModelTask, config: Mapping[str, Any], largest: Mapping[str, int]) -> bool:
    try:
        task.check_shapes(config, largest)
    except BadInput:
        return False
    return True


def _round_up(value: float, step: int) -> int:
    return -int(-value // step) * step


@dataclass(frozen=True)
class _Shape:
    """The task of a checkpoint, and the lengths in tokens of what it reads."""

    task: ModelTask
    usual: int
    longest: int
    needs_head: bool
    new_tokens: int
    takes_samples: bool


def _write_recipe(model: str, checkpoint: Origin, data: Data, targets: Sequence[str], shape: _Shape) -> str:
    what = "queries" if QUERY in shape.task.columns else "rows"
    limit = next((limit for limit in LOSS_LIMITS if rows_to_prove(limit) <= data.rows), LOSS_LIMITS[-1])
    if data.rows:
        proof = f"{rows_to_prove(limit)} {what} can prove that, {data.evaluation} has {data.rows}"
    else:
        limit, proof = LOSS_LIMITS[0], f"{rows_to_prove(LOSS_LIMITS[0])} {what} can prove that"
    read = "" if data.rows else "   # not read: correct the names of columns and splits\n"
    head = "\n  head: {split: fit}   # it has no head: one is fitted on this split first" if shape.needs_head else ""
    columns = "\n".join(
        f"  {name}: {write_flow(column)}{BOX_NOTE if name == 'box_format' else ''}" for name, column in data.columns
    )
    takes_text = "sequence" in shape.task.axes
    length = (
        f"  max_length: {shape.longest}   # texts are cut there; 99 % of the measured ones fit\n" if takes_text else ""
    )
    sequence = f"    sequence: {{min: 4, opt: {shape.usual}, max: {shape.longest}}}\n" if takes_text else ""
    if shape.takes_samples:
        most = f"max: {LONGEST_AUDIO}}}   # at 16 kHz 0.1, 2 and 10 s: longer audio is cut\n"
        sequence = f"    samples: {{min: 1600, opt: 32000, {most}"
    if shape.new_tokens:
        tokens = shape.new_tokens
        sequence += (
            f"    {NEW_TOKENS}: {{min: 1, opt: {tokens // 4}, max: {tokens}}}   # no answer is longer than max\n"
        )
    metric = shape.task.metrics[0]
    side = "below" if metric.higher_is_better else "above"
    quantized = "[fp32, int8, int8-dynamic]" if list(targets) == ["cpu"] else "[fp32, fp16, int8, int8-dynamic]"
    return f"""\
# Check it with `enginery check`, release it with `enginery release`. docs/recipes.md explains every key.
model: {write_flow(model)}   # the name in the registry
task: {shape.task.name}

source:
  {checkpoint.key}{head}

data:
{read}  {data.origin.key}
{columns}
{length}  calibration: {{split: {write_flow(data.calibration)}, samples: 256}}   # int8 finds its scales on these rows
  evaluation: {{split: {write_flow(data.evaluation)}}}   # every engine is judged on these
  # golden: {{samples: 0}}   # else each bundle carries 8 of these, for `enginery verify --golden`

# fp32 is the reference. On a CPU int8-dynamic is the fastest; int8 is for GPUs.
precisions: {quantized}
targets: {write_flow(list(targets))}   # `enginery targets` shows all

profiles:   # what an engine must take: it is tuned for opt, and latency is measured there
  - batch: {{min: 1, opt: 8, max: 32}}
{sequence}
gates:   # what an engine must hold, or it is not published
  loss_max: {limit}   # at most {100 * limit:g} points of {metric.name} {side} fp32; {proof}
  speedup_min: 1.0   # no slower than fp32
  # latency_p99_ms_max: 20   # a limit of your own, on the machine that measures
"""
