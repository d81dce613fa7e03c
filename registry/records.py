"""The domain's values: frozen, and identified by digests; paths may move."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

# A field that says where files lie on one machine: never in JSON, nor in a digest.
PLACE = {"place": True}
# A field that came after a format: canonical JSON leaves it out where it is None, so older texts stay as they are.
LATER = {"later": True}


class Precision(StrEnum):
    """How the weights and activations of an engine are stored and multiplied."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_DYNAMIC = "int8-dynamic"
    INT8_WEIGHT_ONLY = "int8-weight-only"
    FP8 = "fp8"
    INT4_WEIGHT_ONLY = "int4-weight-only"


class Backend(StrEnum):
    """The library that builds and runs an engine."""

    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime_cuda"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt_rtx"

    @property
    def is_portable(self) -> bool:
        """Whether an engine is the ONNX graph itself, which no compute capability and no version ties down."""
        return self in (Backend.ONNXRUNTIME, Backend.ONNXRUNTIME_CUDA)


class Verdict(StrEnum):
    """What a gate says; absence of a measurement is never a pass."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    UNMEASURED = "unmeasured"


@dataclass(frozen=True)
class FileRecord:
    """One file of a folder: POSIX path relative to the folder, hex sha256, size in bytes."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Tensor:
    """A named input or output; a dimension is a number, or the name of a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ModelSource:
    """Where the weights came from; `revision` is a 40-hex commit or a sha256 tree digest, never a branch.

    `classes` are the names of what the model tells apart, in the order of its outputs.
    """

    name: str
    origin: str
    revision: str
    task: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class SourceFiles:
    """A model's checkpoint folder in Hugging Face layout (config, safetensors, tokenizer)."""

    source: ModelSource
    digest: str
    files: tuple[FileRecord, ...]
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)


@dataclass(frozen=True)
class CalibrationSet:
    """The rows a quantizer saw: drawn with `seed` from one revision of one split."""

    name: str
    dataset: str
    revision: str
    split: str
    columns: tuple[str, ...]
    seed: int
    samples: int
    quarantined: int
    digest: str
    files: tuple[FileRecord, ...] = ()
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)


@dataclass(frozen=True)
class Part:
    """One of several graphs or engines that answer together: its name, its file, and the tensors that it binds."""

    name: str
    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Generation:
    """The parts that write text, token by token, and the numbers of the tokens that steer them.

    The decoder reads `prompt` first, and what it writes afterwards is the answer, until one of `ends`; a row that has
    ended is filled up with `padding`. It never writes `suppressed`, and does not begin with `suppressed_first`.
    """

    parts: tuple[Part, ...]
    prompt: tuple[int, ...]
    ends: tuple[int, ...]
    padding: int
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()

    def part(self, name: str) -> Part:
        """Return a part by its name.

        Raises:
            KeyError: there is none.
        """
        return {part.name: part for part in self.parts}[name]


@dataclass(frozen=True)
class OnnxArtifact:
    """An ONNX graph; its precision is in the graph (Q/DQ nodes, casts), not in builder flags.

    `file` is the graph's name under `directory`; `files` are the graph and its external data.
    `digest` is over `files`, so it names the bytes and not the place. `macs_share` is the share of the multiply-adds of
    layers with weights whose weights have the precision, 0 to 1; None for fp32, or where no rows were there to count.
    `exporter` is what exported the fp32 graph, with its version; None for a graph made of another. Of a given graph it
    says that its weights were narrower, and is None where they were not.
    With `generation` it is several graphs: `file` is the first part's, inputs and outputs are those of all together.
    """

    file: str
    files: tuple[FileRecord, ...]
    digest: str
    precision: Precision
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    quantized_from: str | None = None
    calibration_set: str | None = None
    macs_share: float | None = None
    exporter: str | None = field(default=None, metadata=LATER)
    generation: Generation | None = field(default=None, metadata=LATER)
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)

    @property
    def path(self) -> Path:
        """The graph's file."""
        return self.directory / self.file

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of all its graphs."""
        parts = self.generation.parts if self.generation else (self,)
        return tuple(self.directory / part.file for part in parts)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names, in graph order."""
        return tuple(tensor.name for tensor in self.inputs)


@dataclass(frozen=True)
class GpuTarget:
    """A place engines are built for. `compute_capability` is like "8.9"; None for a CPU, or for any NVIDIA GPU."""

    name: str
    backend: Backend
    compute_capability: str | None = None
    gpu_name: str | None = None
    work_pool: str = "default"


@dataclass(frozen=True)
class AxisRange:
    """min, opt and max of one dynamic axis of an optimization profile."""

    min: int
    opt: int
    max: int


# The axis of the tokens that a model writes, in a profile and in what an engine of parts gives.
NEW_TOKENS = "new_tokens"

# What Optimum calls the axes of its exports; a profile and the code use the shorter names.
_AXES = {"batch_size": "batch", "sequence_length": "sequence"}


def axis_name(name: str) -> str:
    """Return the name that profiles have for a graph's axis."""
    return _AXES.get(name, name)


@dataclass(frozen=True)
class ShapeProfile:
    """One optimization profile: the range of each dynamic axis, by name, shared by all inputs."""

    axes: tuple[tuple[str, AxisRange], ...]

    @classmethod
    def of(cls, **axes: AxisRange) -> "ShapeProfile":
        """Make a profile of named axes."""
        return cls(tuple(axes.items()))

    def axis(self, name: str) -> AxisRange | None:
        """Return the range of an axis, by its name in a graph or here; None where the profile leaves it out."""
        return dict(self.axes).get(axis_name(name))

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether sizes of axes are within the profile; an axis that it leaves out may have any."""
        ranges = {name: self.axis(name) for name in sizes}
        return all(span is None or span.min <= sizes[name] <= span.max for name, span in ranges.items())


def largest_axes(profiles: Sequence[ShapeProfile]) -> dict[str, int]:
    """Return the largest size of each named axis in any of the profiles."""
    largest: dict[str, int] = {}
    for profile in profiles:
        for name, span in profile.axes:
            largest[name] = max(span.max, largest.get(name, 0))
    return largest


def fixed_batch(inputs: Sequence[Tensor]) -> int | None:
    """Return the size that the first axis of all inputs is fixed at; None where batches may have several sizes."""
    sizes = {tensor.shape[0] if tensor.shape else None for tensor in inputs}
    size = sizes.pop() if len(sizes) == 1 else None
    return size if isinstance(size, int) else None


@dataclass(frozen=True)
class EngineBuild:
    """A built engine file and everything its `build_key` was made of.

    With `generation` it is several files: `file` is the first part's, `digest` is over `files`, and inputs and outputs
    are those of all parts together.
    """

    file: str
    files: tuple[FileRecord, ...]
    digest: str
    build_key: str
    onnx_digest: str
    precision: Precision
    backend: Backend
    backend_version: str
    target: GpuTarget
    profiles: tuple[ShapeProfile, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    build_seconds: float
    size_bytes: int
    generation: Generation | None = field(default=None, metadata=LATER)
    directory: Path = field(default=Path(), compare=False, metadata=PLACE)

    @property
    def path(self) -> Path:
        """The engine's file."""
        return self.directory / self.file

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names, in the engine's order."""
        return tuple(tensor.name for tensor in self.inputs)


@dataclass(frozen=True)
class Machine:
    """What a figure was measured on. `clocks` in words; GPU fields are None on a CPU.

    `instruction_set` is the CPU's, like "avx2" or "avx512-vnni"; None where nobody looked.
    """

    host_cpu: str
    cores: int
    gpu: str | None = None
    driver: str | None = None
    clocks: str | None = None
    instruction_set: str | None = field(default=None, metadata=LATER)

    @property
    def label(self) -> str:
        """The GPU's name, or the CPU's where there is no GPU."""
        return self.gpu or self.host_cpu


@dataclass(frozen=True)
class Measurement:
    """One figure with its 95 % interval.

    `subject_digest` names what ran: the engine's digest, or the ONNX graph's where `subject` says so. `against` is the
    digest of the engine in production, of a figure that compares with it.
    """

    metric: str
    value: float
    unit: str
    samples: int
    subject: str
    subject_digest: str
    measured_on: Machine
    low: float | None = None
    high: float | None = None
    raw_digest: str | None = None
    against: str | None = field(default=None, metadata=LATER)

    @property
    def name(self) -> str:
        """The metric, with its subject in front where something else than the engine ran."""
        return self.metric if self.subject == "engine" else f"{self.subject}.{self.metric}"


@dataclass(frozen=True)
class GateResult:
    """A gate's verdict on one engine, with the reason in words."""

    gate: str
    verdict: Verdict
    reason: str
    measurement: Measurement | None = None


@dataclass(frozen=True)
class EngineManifest:
    """All that is known of one published engine; canonical JSON in `manifest.json` of its bundle."""

    format_version: int
    model: str
    release: str
    sequence: int
    source: ModelSource
    build: EngineBuild
    calibration_set: CalibrationSet | None
    evaluation_set: str
    measurements: tuple[Measurement, ...]
    gates: tuple[GateResult, ...]
    verdict: Verdict
    reason: str
    toolchain: tuple[tuple[str, str], ...]
    # The oldest GPU driver that runs this engine, like "580"; None on a CPU, or where it is not known.
    minimum_driver: str | None
    files: tuple[FileRecord, ...]
    created_at: str
    # What exported the fp32 graph that the engine was made from, like "optimum-onnx 0.1.0", or "float32 of weights
    # given in float16"; None where one was given in float32.
    exporter: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class EngineVersion:
    """A row of the registry: one published engine.

    `metrics` are (name, value) pairs of the engine's run, `format_version` is its manifest's.
    """

    model: str
    version: int
    target: str
    precision: Precision
    backend: Backend
    verdict: Verdict
    reason: str
    aliases: tuple[str, ...]
    digest: str
    build_key: str
    release: str
    sequence: int
    size_bytes: int
    metrics: tuple[tuple[str, float], ...]
    measured_on: str
    compute_capability: str | None
    backend_version: str
    minimum_driver: str | None
    format_version: int
    complete: bool

    @property
    def quality(self) -> tuple[str, float] | None:
        """The model task's metric: the first one whose loss against fp32 is measured too.

        Its name starts with "onnx-graph." where only the exact graph was measured.
        """
        names = {name for name, _ in self.metrics}
        return next(((name, value) for name, value in self.metrics if f"{name}_loss" in names), None)


@dataclass(frozen=True)
class PromotionEvent:
    """One line of a model's history, written before its alias moves; `outcome` is written after.

    Events of one `operation` move together or not at all. `digest` is the engine's; `fencing` numbers the turn
    (registry/mlflow/leases.py) in which it was written. `approved_by` is the other approver of a protected target.
    """

    event: str
    model: str
    alias: str
    action: str
    from_version: int | None
    to_version: int
    who: str
    why: str
    evidence: str
    at: str
    outcome: str
    operation: str
    digest: str
    fencing: int
    waiver: str | None = None
    flow_run: str | None = None
    approved_by: str | None = None
