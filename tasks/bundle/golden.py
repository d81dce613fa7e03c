"""Golden inputs: a few rows in a bundle, with what the encoder made of them and what the engine answered.

`golden.json` holds them, in the format of docs/bundle-format.md. A serving host runs them again (check_golden.py) to
see that it prepares inputs and answers as the machine that released the engine did (docs/adr/0030-golden-inputs.md).
"""

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.bundle.manifest import read_listed
from registry.digest import canonical_json, read_canonical
from registry.errors import BadInput, NotFound
from registry.records import EngineManifest, Machine, Precision
from tasks.backends import Session
from tasks.model_tasks.contract import Encoder, Feed, ModelTask

GOLDEN_FILE = "golden.json"
ENGINE = "engine"
# 32 rows of the largest inputs in base64, each with 16,384 numbers of at most 25 characters, are 24 MB.
LARGEST_FILE = 64 * 2**20
_ADVICE = "do not trust it, and publish the engine again"


@dataclass(frozen=True)
class Tolerance:
    """How far an answer may be off, as a share of the largest number among all recorded answers.

    `same_kind` holds on a host of the kind that answered: the same GPU, or a CPU with the same instruction set, and the
    same version of the backend. `from_graph` holds for an engine where its exact graph answered.
    """

    same_kind: float
    other_kind: float
    from_graph: float


# docs/adr/0030-golden-inputs.md says what was measured.
_FLOAT, _HALF = Tolerance(1e-5, 1e-4, 0.02), Tolerance(1e-3, 5e-3, 0.05)
_WEIGHTS, _ALL = Tolerance(1e-3, 0.02, 0.05), Tolerance(0.03, 0.1, 0.15)
TOLERANCES: Mapping[Precision, Tolerance] = MappingProxyType(
    {
        Precision.FP32: _FLOAT,
        Precision.FP16: _HALF,
        Precision.BF16: _HALF,
        Precision.INT8: _ALL,
        Precision.INT8_DYNAMIC: _ALL,
        Precision.INT8_WEIGHT_ONLY: _WEIGHTS,
        Precision.FP8: _ALL,
        Precision.INT4_WEIGHT_ONLY: _WEIGHTS,
    }
)


@dataclass(frozen=True)
class FileContent:
    """The content of a file, such as an encoded image, in base64 (RFC 4648)."""

    base64: str


@dataclass(frozen=True)
class FedTensor:
    """One tensor of a row's feed: `sha256` is over its values, in C order and little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True)
class GivenOutput:
    """One output of the engine for a row that ran alone; `values` in C order."""

    name: str
    shape: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def array(self) -> NDArray[np.float64]:
        """The output, float64 [*shape]."""
        return np.array(self.values, dtype=np.float64).reshape(self.shape)


@dataclass(frozen=True)
class GoldenRow:
    """An input as a row of the model's task has it, its feed, and the outputs that answers are made of."""

    row_input: str | tuple[str, ...] | FileContent
    feed: tuple[FedTensor, ...]
    outputs: tuple[GivenOutput, ...]

    @property
    def decoded(self) -> Any:
        """The input as the task's encoder takes it."""
        return base64.b64decode(self.row_input.base64) if isinstance(self.row_input, FileContent) else self.row_input


@dataclass(frozen=True)
class Golden:
    """Golden inputs with their answers.

    `subject` says what answered: "engine", or "onnx-graph" where the machine could not run the engine and its exact
    graph answered in ONNX Runtime. `subject_digest` is the sha256 of that file, `answered_on` the machine.
    """

    subject: str
    subject_digest: str
    answered_on: Machine
    tolerance: Tolerance
    rows: tuple[GoldenRow, ...]


def run_judged(
    session: Session, task: ModelTask, encoder: Encoder, row_input: Any, feed: Feed
) -> dict[str, NDArray[np.float64]]:
    """Return by name what the answer to an input is made of: the engine's outputs as the task reduces them, float64."""
    outputs = task.reduce_outputs(session.run(feed), [row_input], encoder)
    names = session.output_names
    return {
        names[at] if at < len(names) else f"{names[-1]}/{at}": outputs[at].astype(np.float64)
        for at in task.judged_outputs
    }


def describe_feed(feed: Feed) -> tuple[FedTensor, ...]:
    """Return what identifies a feed, tensor by tensor in the order of their names."""
    return tuple(
        FedTensor(
            name,
            array.dtype.name,
            array.shape,
            sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()).hexdigest(),
        )
        for name, array in sorted(feed.items())
    )


def write_golden(golden: Golden, into: Path) -> None:
    """Write golden.json."""
    (into / GOLDEN_FILE).write_bytes(canonical_json(golden))


def read_golden(bundle: Path, manifest: EngineManifest) -> Golden:
    """Read the golden inputs of a bundle that is verified already.

    Raises:
        NotFound: the bundle has none.
        DigestMismatch: golden.json was changed since the bundle was verified.
        BadInput: golden.json is not what `write_golden` writes.
    """
    raw = read_listed(bundle, manifest, GOLDEN_FILE, LARGEST_FILE)
    if raw is None:
        raise NotFound(
            f"{bundle} has no golden inputs, so there is nothing to run: it was released without any (data.golden and "
            "warmup_rows in the recipe); verify it without --golden"
        )
    return parse_golden(raw, str(bundle / GOLDEN_FILE))


def parse_golden(raw: bytes, name: str) -> Golden:
    """Parse golden.json; `name` names it in an error.

    Raises:
        BadInput: it is not what `write_golden` writes.
    """
    golden = read_canonical(Golden, raw, name, advice=_ADVICE)
    outputs = [output for row in golden.rows for output in row.outputs]
    if not outputs or any(math.prod(output.shape) != len(output.values) for output in outputs):
        raise BadInput(f"{name}: an output has another shape than its values, or there is none: {_ADVICE}")
    if any(size < 0 for output in outputs for size in output.shape):
        raise BadInput(f"{name}: an output has a negative size: {_ADVICE}")
    for row in golden.rows:
        if isinstance(row.row_input, FileContent):
            _check_base64(row.row_input.base64, name)
    return golden


def _check_base64(text: str, name: str) -> None:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInput(f"{name}: an input is not base64: {_ADVICE}") from error
