"""How long the steps of a release took on this machine, so that the next one can say how long it will take.

A file of JSON lines, one per finished step, beside the stages. It only informs: a line that cannot be read is skipped.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tasks.execution.progress import StepEnd

# Seconds by the first words of a step's name, the longest match first: the sample release (a checkpoint of 91 MB,
# 2,340 evaluation rows, 4 engines to time) on 2 cores, as in docs/measurements/2026-11.md.
TYPICAL_SECONDS: Mapping[str, float] = MappingProxyType(
    {
        "source": 0.3,
        "head": 30.0,
        "calibration": 0.3,
        "export": 4.0,
        "quantize int8": 11.0,
        "quantize": 5.0,
        "build cpu": 0.5,
        "build": 2.0,
        "evaluate": 10.0,
        "benchmark": 45.0,
        "publish": 9.0,
    }
)
TYPICAL_WEIGHTS_BYTES = 91e6


@dataclass(frozen=True)
class StepTimes:
    """The seconds of each step of a model's last release here; `stages` is the folder of this host's stages."""

    stages: Path
    model: str
    _known: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def file(self) -> Path:
        """JSON lines of all models."""
        return self.stages / "step_seconds.jsonl"

    def __post_init__(self) -> None:
        with suppress(OSError):
            for line in self.file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    if entry["model"] == self.model:
                        self._known[entry["step"]] = float(entry["seconds"])

    def record(self, end: StepEnd) -> None:
        """Keep what a step took; a step that was found, or failed, took no time that tells anything."""
        if end.found:
            return
        line = json.dumps({"model": self.model, "step": end.name, "seconds": round(end.seconds, 2)})
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def is_known(self, step: str) -> bool:
        """Tell whether this machine has run a step of the model."""
        return step in self._known

    def estimate(self, step: str, weights_bytes: int) -> float:
        """Return the seconds that a step will take: as last time, else those of the sample model by size of weights."""
        if step in self._known:
            return self._known[step]
        typical = max((start for start in TYPICAL_SECONDS if step.startswith(start)), key=len, default=None)
        # A tiny model still starts a process and loads its libraries.
        return TYPICAL_SECONDS[typical] * max(weights_bytes / TYPICAL_WEIGHTS_BYTES, 0.1) if typical else 0.0
