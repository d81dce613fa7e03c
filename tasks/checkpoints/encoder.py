"""The encoder of a checkpoint (its tokenizer or image processor), tried before a release depends on it.

It is a stranger's program: regular expressions that may backtrack for ever, in native code that Ctrl-C does not reach
and that may panic. So it runs on real rows in a process of its own first, with a time limit.
"""

import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.errors import BadInput, BuildError, first_line
from tasks.execution.isolate import run_isolated
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.model_tasks import MODULE, ModelTask
from tasks.model_tasks.contract import EncodedSizes

# Long, because a busy machine may be slow: it is there to end what never would.
LIMIT_SECONDS = 60.0
MOST_INPUTS = 1000
# A normalizer may make gigabytes of one letter.
MOST_BYTES = 4 * 2**30


def try_encoder(
    task: ModelTask,
    folder: Path,
    inputs: Sequence[Any],
    largest: Mapping[str, int],
    config: Mapping[str, Any],
    *,
    limit_seconds: float = LIMIT_SECONDS,
) -> tuple[int, ...]:
    """Encode the first 1,000 inputs, cut at the `largest` sizes; return how many tokens each has.

    Raises:
        BadInput: the encoder's files are missing or of another form; it fails, crashes or runs into the limit; or an
            id of its vocabulary is beyond the embedding that config.json gives (`vocab_size`).
    """
    tried = tuple(inputs[:MOST_INPUTS])
    try:
        sizes = run_isolated(
            _measure_inputs,
            task,
            folder,
            tried,
            dict(largest),
            on_progress=ignore_progress,
            limit_seconds=limit_seconds,
        )
    except BuildError as error:
        reason = first_line(error).removeprefix("_measure_inputs: ")
        own = task.name == MODULE
        who, advice = (
            ("preprocess()", "correct it")
            if own
            else (folder / task.serving_files[0], "use a checkpoint with another one")
        )
        raise BadInput(f"{who} cannot encode the first {len(tried)} rows ({reason}): {advice}") from None
    rows = config.get("vocab_size")
    if isinstance(rows, int) and sizes.largest_id >= rows:
        raise BadInput(
            f"{folder / task.serving_files[0]} has token ids up to {sizes.largest_id}, but config.json's vocab_size is "
            f"{rows}: save the checkpoint with its own tokenizer, or resize its embedding first"
        )
    return sizes.tokens


def _measure_inputs(
    task: ModelTask, folder: Path, inputs: tuple[Any, ...], largest: dict[str, int], _progress: OnProgress
) -> EncodedSizes:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    # Rust writes its panics to standard error; what they say is in the error too.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    return task.measure_inputs(folder, inputs, largest)
