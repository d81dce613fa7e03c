"""Statistics on disk while they are collected, so that a killed calibration goes on where it was."""

import json
import logging
import os
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from registry.digest import digest_of, file_sha256
from tasks.calibration.histogram import BINS
from tasks.calibration.rows import BATCH_ROWS, BATCH_TOKENS
from tasks.calibration.statistics import ActivationStatistics, Calibration
from tasks.calibration.token_sample import SAMPLE_TOKENS, TokenSample

# Statistics of a small encoder are written in 0.2 s.
SAVE_EVERY_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """What is counted, which batches that covers (sha256 with repetitions), and the file it is written to."""

    file: Path | None
    identity: str
    calibration: Calibration = field(default_factory=Calibration)
    covered: Counter[bytes] = field(default_factory=Counter)
    _to_skip: Counter[bytes] = field(default_factory=Counter)
    _saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, file: Path | None, source: Path, shard: tuple[int, int]) -> "Checkpoint":
        """Read the state of a killed run from `file`; a fresh one where it is of another graph, or unreadable."""
        if file is None:
            return cls(None, "")
        identity = digest_of((file_sha256(source), shard, BINS, BATCH_ROWS, BATCH_TOKENS, SAMPLE_TOKENS))
        try:
            # np.load leaves a file open that it cannot read.
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                return cls._read(file, identity, stored)
        except FileNotFoundError:
            return cls(file, identity)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            log.warning("calibration starts over: %s is no checkpoint of this graph (%s)", file, error)
            return cls(file, identity)

    @classmethod
    def _read(cls, file: Path, identity: str, stored: Any) -> "Checkpoint":
        header = json.loads(stored["header"].tobytes())
        if header["identity"] != identity:
            raise ValueError("it is of another graph or version")
        found = Calibration(rows=header["rows"], quarantined=header["quarantined"])
        for at, (tensor, peak_row) in enumerate(header["tensors"]):
            statistics = ActivationStatistics(stored[f"{at}/amax"], peak_row=peak_row)
            statistics.histogram.counts[stored[f"{at}/bins"]] = stored[f"{at}/counts"]
            rows = np.split(stored[f"{at}/sample"], np.cumsum(stored[f"{at}/lengths"])[:-1])
            keys = [key.tobytes() for key in stored[f"{at}/keys"]]
            statistics.sample.merge(TokenSample(dict(zip(keys, rows, strict=True)) if keys else {}))
            found.activations[tensor] = statistics
        covered = Counter(key.tobytes() for key in stored["covered"])
        return cls(file, identity, found, covered, covered.copy())

    def skip(self, batch: bytes) -> bool:
        """Whether a batch was counted before the kill."""
        if not self._to_skip[batch]:
            return False
        self._to_skip[batch] -= 1
        return True

    def done(self, batch: bytes) -> None:
        """Note that a batch is counted by the next save."""
        self.covered[batch] += 1

    def save_now_and_then(self) -> None:
        """Save when SAVE_EVERY_SECONDS have passed."""
        if time.monotonic() - self._saved_at >= SAVE_EVERY_SECONDS:
            self.save()

    def save(self) -> None:
        """Write all of it beside the file, then put it in place: a kill leaves the old one or the new one."""
        if self.file is None:
            return
        arrays: dict[str, Any] = {"covered": _keys(self.covered.elements())}
        for at, each in enumerate(self.calibration.activations.values()):
            bins = np.flatnonzero(each.histogram.counts)
            rows = each.sample.rows
            arrays |= {
                f"{at}/amax": each.channel_amax,
                f"{at}/bins": bins,
                f"{at}/counts": each.histogram.counts[bins],
                f"{at}/keys": _keys(rows),
                f"{at}/lengths": np.array([len(row) for row in rows.values()], dtype=np.int64),
                f"{at}/sample": np.concatenate([*rows.values()]) if rows else np.zeros((0, 0), dtype=np.float32),
            }
        header = {
            "identity": self.identity,
            "rows": self.calibration.rows,
            "quarantined": self.calibration.quarantined,
            "tensors": [(name, each.peak_row) for name, each in self.calibration.activations.items()],
        }
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        scratch = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        with scratch.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.file)
        self._saved_at = time.monotonic()


def _keys(keys: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32)
