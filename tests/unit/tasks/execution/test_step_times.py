"""How long steps took here tells how long they will take, and a damaged record tells nothing."""

from pathlib import Path

import pytest

from tasks.execution.progress import StepEnd
from tasks.execution.step_times import TYPICAL_SECONDS, TYPICAL_WEIGHTS_BYTES, StepTimes

SAMPLE = int(TYPICAL_WEIGHTS_BYTES)


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    return tmp_path / "stages"


def test_a_step_is_estimated_by_its_last_run_of_the_same_model(stages: Path) -> None:
    times = StepTimes(stages, "sst2")
    times.record(StepEnd("export fp32", 7.0, found=False))
    times.record(StepEnd("export fp32", 9.0, found=False))
    assert StepTimes(stages, "sst2").estimate("export fp32", SAMPLE) == 9.0
    assert StepTimes(stages, "sst2").is_known("export fp32")
    assert not StepTimes(stages, "other").is_known("export fp32")


def test_what_was_found_took_no_time_that_tells_anything(stages: Path) -> None:
    StepTimes(stages, "sst2").record(StepEnd("export fp32", 0.01, found=True))
    assert not stages.exists()


def test_a_new_model_is_estimated_by_the_sample_model_and_its_size(stages: Path) -> None:
    times = StepTimes(stages, "sst2")
    assert times.estimate("quantize int8", SAMPLE) == TYPICAL_SECONDS["quantize int8"]
    assert times.estimate("quantize int8", 2 * SAMPLE) == 2 * TYPICAL_SECONDS["quantize int8"]
    assert times.estimate("quantize fp16", SAMPLE) == TYPICAL_SECONDS["quantize"]
    assert times.estimate("nothing known", SAMPLE) == 0.0


def test_a_damaged_line_is_skipped(stages: Path) -> None:
    StepTimes(stages, "sst2").record(StepEnd("export fp32", 7.0, found=False))
    with (stages / "step_seconds.jsonl").open("a") as lines:
        lines.write('{"model": "sst2"\n[]\n{"model": "sst2", "step": "head", "seconds": "long"}\n')
    times = StepTimes(stages, "sst2")
    assert (times.is_known("export fp32"), times.is_known("head")) == (True, False)


def test_a_folder_that_cannot_be_written_stops_no_release(tmp_path: Path) -> None:
    (tmp_path / "stages").write_text("a file")
    StepTimes(tmp_path / "stages", "sst2").record(StepEnd("export fp32", 7.0, found=False))
