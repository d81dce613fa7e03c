"""Calibration statistics on disk while they are collected, so that a killed calibration resumes where it stopped."""

import json
import logging
import os
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.digest import digest_of, file_sha256
from tasks.calibration.histogram import BINS
from tasks.calibration.rows import BATCH_ROWS, BATCH_TOKENS
from tasks.calibration.statistics import ActivationStatistics, Calibration
from tasks.calibration.token_sample import SAMPLE_TOKENS, TokenSample

log = logging.getLogger(__name__)


@dataclass
class CalibrationCheckpoint:
    """The statistics so far, the batches they cover (sha256 with repetitions), and the file they are saved to.

    Without a file nothing is saved. Statistics of a small encoder are written in 0.2 s.
    """

    file: Path | None
    identity: str
    calibration: Calibration = field(default_factory=Calibration)
    covered: Counter[bytes] = field(default_factory=Counter)
    save_every_seconds: float = 10.0
    _to_skip: Counter[bytes] = field(init=False)
    _saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._to_skip = self.covered.copy()

    @classmethod
    def open(cls, file: Path | None, graph_file: Path) -> "CalibrationCheckpoint":
        """Read the state of a killed run from `file`; start afresh if it is of another graph, or unreadable."""
        if file is None:
            return cls(None, "")
        identity = digest_of((file_sha256(graph_file), BINS, BATCH_ROWS, BATCH_TOKENS, SAMPLE_TOKENS))
        try:
            # np.load leaves a file open that it cannot read.
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                return cls(file, identity, *_read_state(identity, stored))
        except FileNotFoundError:
            return cls(file, identity)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            log.warning("calibration starts over: %s is not a checkpoint of this graph (%s)", file, error)
            return cls(file, identity)

    def skip_counted(self, batch: bytes) -> bool:
        """Return whether the batch of this sha256 was counted before the kill; each repetition once."""
        if not self._to_skip[batch]:
            return False
        self._to_skip[batch] -= 1
        return True

    def mark_counted(self, batch: bytes) -> None:
        """Note that the batch of this sha256 is counted by the next save."""
        self.covered[batch] += 1

    def save_if_due(self) -> None:
        """Save when `save_every_seconds` have passed since the last save."""
        if time.monotonic() - self._saved_at >= self.save_every_seconds:
            self.save()

    def save(self) -> None:
        """Write the state beside the file, then rename it: a kill leaves the old file or the new one."""
        if self.file is None:
            return
        scratch = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        with scratch.open("wb") as file:
            np.savez(file, **self._to_arrays())
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.file)
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete the file of a finished run."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _to_arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {"covered": _stack_keys(self.covered.elements())}
        for index, statistics in enumerate(self.calibration.activations.values()):
            bins = np.flatnonzero(statistics.histogram.counts)
            rows = statistics.sample.rows
            arrays |= {
                f"{index}/amax": statistics.channel_amax,
                f"{index}/bins": bins,
                f"{index}/counts": statistics.histogram.counts[bins],
                f"{index}/keys": _stack_keys(rows),
                f"{index}/lengths": np.array([len(row) for row in rows.values()], dtype=np.int64),
                f"{index}/sample": np.concatenate([*rows.values()]) if rows else np.zeros((0, 0), dtype=np.float32),
            }
        header = {
            "identity": self.identity,
            "rows": self.calibration.rows,
            "quarantined": self.calibration.quarantined,
            "tensors": [(name, statistics.peak_row) for name, statistics in self.calibration.activations.items()],
        }
        return arrays | {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}


def _read_state(identity: str, stored: Any) -> tuple[Calibration, Counter[bytes]]:
    """Read the statistics and the covered batches from an open .npz; ValueError if they have another identity."""
    header = json.loads(stored["header"].tobytes())
    if header["identity"] != identity:
        raise ValueError("it is of another graph or version")
    calibration = Calibration(rows=header["rows"], quarantined=header["quarantined"])
    for index, (tensor, peak_row) in enumerate(header["tensors"]):
        statistics = ActivationStatistics(stored[f"{index}/amax"], peak_row=peak_row)
        statistics.histogram.counts[stored[f"{index}/bins"]] = stored[f"{index}/counts"]
        rows = np.split(stored[f"{index}/sample"], np.cumsum(stored[f"{index}/lengths"])[:-1])
        keys = [key.tobytes() for key in stored[f"{index}/keys"]]
        if keys:
            statistics.sample = TokenSample(dict(zip(keys, rows, strict=True)))
        calibration.activations[tensor] = statistics
    return calibration, Counter(key.tobytes() for key in stored["covered"])


def _stack_keys(keys: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32)
