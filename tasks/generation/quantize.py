"""The graphs of a precision, part by part: each is calibrated on what it gets when fp32 generates."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from registry.records import OnnxArtifact, Precision
from tasks.calibration.feeds import EncodedFeeds
from tasks.calibration.rows import Feed
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.generation.feeds import draw_decoder_feeds
from tasks.generation.parts import DECODER, ENCODER, join_graphs, split_graphs
from tasks.generation.trial import open_graphs
from tasks.quantization.quantize import CALIBRATED, quantize
from tasks.quantization.request import Int8Plan


@dataclass(frozen=True)
class GenerationRows:
    """Rows to generate for: as feeds of the encoder, which knows how they are made, and the most tokens of each."""

    feeds: EncodedFeeds
    new_tokens: int

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The inputs of all rows."""
        return tuple(row for batch in self.feeds.batches for row in batch)


def quantize_parts(
    onnx: OnnxArtifact,
    precision: Precision,
    rows: GenerationRows,
    *,
    calibration_set_digest: str | None,
    into: Path,
    on_progress: OnProgress = ignore_progress,
    checkpoint: Path | None = None,
) -> OnnxArtifact:
    """Write the graphs of `precision` into `into`/encoder and `into`/decoder, as `quantize` does for one graph.

    `checkpoint` keeps the calibration of each part across a kill. There is no holdout: a part's outputs are no answer.

    Raises:
        BadInput: as `quantize`, of any of the parts.
    """
    if onnx.generation is None:
        raise ValueError(f"{onnx.file} is one graph")
    if precision not in CALIBRATED:  # a few rows are enough to compare the graphs on
        rows = replace(rows, feeds=rows.feeds[:1])
    with tempfile.TemporaryDirectory() as folder:
        session = open_graphs(onnx, rows.new_tokens)
        decoder_feeds = draw_decoder_feeds(session, rows.feeds.encoder, rows.inputs, into=Path(folder))
        feeds: dict[str, Sequence[Feed]] = {ENCODER: rows.feeds, DECODER: decoder_feeds}
        graphs = {
            name: quantize(
                graph,
                precision,
                feeds[name],
                calibration_set_digest=calibration_set_digest,
                into=into / name,
                on_progress=partial(_tell, on_progress, name),
                plan=Int8Plan(checkpoint=checkpoint and checkpoint.with_name(f"{checkpoint.name}-{name}")),
            )
            for name, graph in split_graphs(onnx).items()
        }
    return replace(join_graphs(graphs, onnx.generation, into), quantized_from=onnx.digest, macs_share=None)


def _tell(on_progress: OnProgress, part: str, phase: str, fraction: float) -> bool | None:
    return on_progress(f"{part}: {phase}", fraction)
