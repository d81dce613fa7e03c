"""Recipe and Fleet: the YAML files, and the one place where what a person wrote is parsed."""

import json
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from registry.errors import BadInput
from registry.names import check_name
from registry.promotion.rules import TargetRules
from registry.records import AxisRange, Backend, GpuTarget, Precision, ShapeProfile

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


class HeadSpec(Part):
    """A classification head fitted once on a split, on top of an encoder that has none."""

    split: str = "fit"
    seed: Seed = 0


class SourceSpec(Part):
    """Where the model comes from: exactly one of hub, package, path, module.

    A module ("package.module:callable") is the user's own code, and brings no tokenizer and no class names: name them.
    """

    hub: Text | None = None
    revision: Text | None = None
    package: Text | None = None
    version: Text | None = None
    folder: Text | None = None
    sha256: Sha256 | None = None
    path: Text | None = None
    module: Text | None = None
    tokenizer: Text | None = None
    labels: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    head: HeadSpec | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if sum(origin is not None for origin in (self.hub, self.package, self.path, self.module)) != 1:
            raise ValueError("give exactly one of hub, package, path, module")
        if (self.module is None) != (self.tokenizer is None and self.labels is None):
            raise ValueError("tokenizer and labels go with a module, and only with one")
        if self.module and not (self.tokenizer and self.labels and self.head is None):
            raise ValueError("a module needs tokenizer (a folder with tokenizer.json) and labels, and takes no head")
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
    table: Text | None = None


class EvaluationSpec(Part):
    """The rows engines are judged on; `samples` caps them, drawn with `seed`."""

    split: str = "evaluation"
    samples: Count | None = None
    seed: Seed = 0


class DataSpec(Part):
    """The dataset: a folder of Parquet splits (`path`), or a hub dataset (`hub`) at a `revision`."""

    path: Text | None = None
    hub: Text | None = None
    revision: Text | None = None
    text: str = "text"
    label: str = "label"
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    calibration: CalibrationSpec = CalibrationSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of path, hub")
        if self.hub and not self.revision:
            raise ValueError("a hub dataset needs a revision")
        return self


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


class ProfileSpec(Part):
    """One optimization profile."""

    batch: AxisSpec
    sequence: AxisSpec

    def shape_profile(self) -> ShapeProfile:
        """The same as a domain value."""
        return ShapeProfile(AxisRange(**self.batch.model_dump()), AxisRange(**self.sequence.model_dump()))


class GateSpec(Part):
    """What an engine must hold; an absent limit is not a gate, an absent measurement fails its gate."""

    accuracy_loss_max: Fraction = 0.01
    latency_p99_ms_max: Positive | None = None
    speedup_min: Positive | None = None
    size_mb_max: Positive | None = None


class LatencySpec(Part):
    """How latency is measured: interleaved windows of `iterations` calls at the profile's opt shape."""

    windows: Annotated[int, Field(ge=4, le=1000)] = 10
    iterations: Annotated[int, Field(ge=5, le=100_000)] = 50
    warmup: Annotated[int, Field(ge=1, le=100_000)] = 10


class Recipe(Part):
    """One model's release: what, from where, for which targets, in which precisions, held to which gates."""

    model: Name
    task: str = "text-classification"
    source: SourceSpec
    data: DataSpec
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)]
    targets: Annotated[tuple[Name, ...], Field(min_length=1)]
    profiles: Annotated[tuple[ProfileSpec, ...], Field(min_length=1, max_length=8)]
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
    def _sensible(self) -> Self:
        if Precision.FP32 not in self.precisions:
            raise ValueError("precisions must hold fp32: it is the reference of accuracy and the baseline of speed")
        for field, values in (("precisions", self.precisions), ("targets", self.targets)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field} names one of its entries twice")
        if max(profile.sequence.max for profile in self.profiles) != self.data.max_length:
            raise ValueError("data.max_length must be the largest sequence max of the profiles: rows are cut there")
        return self


class TargetSpec(Part):
    """One entry of the fleet file."""

    backend: Backend
    compute_capability: Annotated[str, Field(pattern=r"^[0-9]{1,2}\.[0-9]$")] | None = None
    gpu_name: str | None = None
    work_pool: Name = "default"
    # What promotion asks of the target: the backend's version (or its first parts) on the serving hosts; two approvers.
    serving: Annotated[str, Field(pattern=r"^[0-9]{1,5}([.][0-9]{1,5}){0,4}$")] | None = None
    protected: bool = False
    # How long a release on workers waits for a worker of the pool to come online; one that is busy is waited for.
    patience_seconds: Annotated[int, Field(ge=1, le=604_800)] = 1800

    @model_validator(mode="after")
    def _capability(self) -> Self:
        if (self.backend is Backend.ONNXRUNTIME) != (self.compute_capability is None):
            raise ValueError('a TensorRT target needs a compute_capability such as "8.9"; a CPU target has none')
        return self

    def target(self, name: str) -> GpuTarget:
        """The same as a domain value."""
        return GpuTarget(name, self.backend, self.compute_capability, self.gpu_name, self.work_pool)


class Fleet(Part):
    """The GPU types of the team, by target name."""

    targets: Annotated[dict[Name, TargetSpec], Field(min_length=1)]

    def target(self, name: str) -> GpuTarget:
        """The target of that name.

        Raises:
            BadInput: the fleet has none.
        """
        return self.spec(name).target(name)

    def rules(self, name: str) -> TargetRules:
        """What promotion asks of the target of that name.

        Raises:
            BadInput: the fleet has none.
        """
        spec = self.spec(name)
        return TargetRules(spec.serving, spec.protected)

    def spec(self, name: str) -> TargetSpec:
        """The entry of that name.

        Raises:
            BadInput: the fleet has none.
        """
        if name not in self.targets:
            raise BadInput(f"the fleet has no target {name!r}: choose from {', '.join(self.targets)}, or add it there")
        return self.targets[name]


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


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        BadInput: unreadable, aliases, unknown key, wrong type, NaN, out of range; says where in the file.
    """
    return _parse(Recipe, path)


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file.

    Raises:
        BadInput: as for a recipe.
    """
    return _parse(Fleet, path)
