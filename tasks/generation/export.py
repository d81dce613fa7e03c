"""The export of an encoder-decoder to two graphs, in a process of its own, compared with PyTorch on real rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import BadInput, EngineryError
from registry.records import NEW_TOKENS, OnnxArtifact, SourceFiles
from tasks.checkpoints.architectures import explain_newer
from tasks.checkpoints.config import read_config
from tasks.execution.isolate import run_isolated
from tasks.execution.offline import go_offline
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.generation.greedy import Feed, Step
from tasks.generation.parts import DECODER, ENCODER, PAST_AXIS, join_graphs
from tasks.model_tasks import ModelTask, model_task

# Optimum's files, and the names that its axes get: a decoder reads one token at a step. The encoder's is named below.
_ENCODER_FILE, _FIRST_STEP_FILE = "encoder_model.onnx", "decoder_model.onnx"
_LATER_STEPS_FILE = "decoder_with_past_model.onnx"
_AXES: Mapping[str, int | str] = {
    "past_decoder_sequence_length": PAST_AXIS,
    "decoder_sequence_length": 1,
    "1": 1,
    "past_decoder_sequence_length + decoder_sequence_length": "present",
}


def run_generation_exporter(
    source: SourceFiles, task: ModelTask, inputs: Sequence[Any], largest: Mapping[str, int], *, into: Path
) -> OnnxArtifact:
    """Export a checkpoint to `into`/encoder and `into`/decoder, and compare both with PyTorch on `inputs`.

    Raises:
        BadInput: Optimum cannot export it, or its generation is told wrongly.
        EngineryError: what the graphs write has other logits in PyTorch.
        BuildError: the process died.
    """
    if reason := explain_newer(read_config(source.directory)):
        raise BadInput(
            f"{source.source.name} cannot be exported for {task.name} by Optimum, since {reason}: save it "
            "with transformers 4.57"
        )
    return run_isolated(_export, source, task.name, tuple(inputs), dict(largest), into, on_progress=ignore_progress)


def _export(
    source: SourceFiles, task: str, inputs: tuple[Any, ...], largest: dict[str, int], into: Path, _progress: OnProgress
) -> OnnxArtifact:
    go_offline()
    # A check tried the encoder before; what reaches this without one still ends in a sentence.
    model_task(task).measure_inputs(source.directory, inputs, largest)
    onnx = export_parts(source, into=into)
    encoder = model_task(task).open_encoder(source.directory, onnx.input_names, largest)
    check_generation(source, onnx, [encoder.encode(inputs), encoder.encode(inputs[:1])], largest[NEW_TOKENS])
    return onnx


def export_parts(source: SourceFiles, *, into: Path) -> OnnxArtifact:
    """Export a checkpoint to two graphs.

    The encoder gives the keys and values that the decoder attends to. The decoder reads one token [batch_size, 1] and
    the past [batch_size, heads, past, channels] of each layer, whose length is 0 at the first step.

    Raises:
        BadInput: as `run_generation_exporter`.
    """
    import onnx

    from tasks.generation.cross_attention import add_cross_attention
    from tasks.generation.rules import read_rules
    from tasks.graphs.export import load_checkpoint, name_exporter, trace_checkpoint

    with trace_checkpoint(source, model_task(source.source.task).fixed_sizes(source.directory)) as scratch:
        encoder, first_step = (onnx.load(scratch / name) for name in (_ENCODER_FILE, _FIRST_STEP_FILE))
        decoder = onnx.load(scratch / _LATER_STEPS_FILE)
    # What an encoder gives of audio has one length.
    length = encoder.graph.output[0].type.tensor_type.shape.dim[1].dim_value or "sequence_length"
    axes = {"encoder_sequence_length": length, **_AXES}
    models = {ENCODER: add_cross_attention(encoder, first_step), DECODER: decoder}
    del encoder, first_step, decoder
    exporter = name_exporter("optimum-onnx")
    graphs = {name: _save_part(model, axes, into / name, exporter) for name, model in models.items()}
    return join_graphs(graphs, read_rules(load_checkpoint(source)), into)


def _save_part(model: Any, axes: Mapping[str, int | str], into: Path, exporter: str) -> OnnxArtifact:
    from dataclasses import replace

    from registry.records import Precision
    from tasks.graphs.files import make_artifact, save_graph

    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            size = axes.get(axis.dim_param)
            if isinstance(size, int):
                axis.dim_value = size
            elif size is not None:
                axis.dim_param = size
    into.mkdir(parents=True)
    save_graph(model, into)
    return replace(make_artifact(into, Precision.FP32), exporter=exporter)


def check_generation(source: SourceFiles, onnx: OnnxArtifact, feeds: Sequence[Feed], most: int) -> None:
    """Check that PyTorch gives the logits of each step that the graphs run, for at most `most` new tokens.

    So the graphs write what transformers' greedy search writes.

    Raises:
        EngineryError: a logit differs by more than 1e-4 of the largest one, or is not finite.
    """
    from tasks.generation.trial import open_graphs
    from tasks.graphs.export import TOLERANCE, load_checkpoint

    module, session = load_checkpoint(source), open_graphs(onnx, most)
    for feed in feeds:
        steps = list(session.steps(feed))
        exact = _run_module(module, feed, steps)
        made = np.stack([step.logits for step in steps], axis=1)
        bound = TOLERANCE * float(np.abs(exact).max())
        difference = float(np.abs(exact - made).max())
        if not difference <= bound:  # NaN is never within
            raise EngineryError(
                f"{onnx.path}: the logits differ from PyTorch's by {difference:.3g} on {len(exact)} rows, at most "
                f"{bound:.3g} ({TOLERANCE:g} of the largest) is accepted: export it again"
            )


def _run_module(module: Any, feed: Feed, steps: Sequence[Step]) -> Any:
    """Return PyTorch's logits [batch, steps, vocabulary] where its decoder reads in one go what the graph's read."""
    import torch

    read = np.concatenate([step.feed["input_ids"] for step in steps], axis=1)
    with torch.inference_mode():
        given = {name: torch.from_numpy(values) for name, values in feed.items()}
        return module(**given, decoder_input_ids=torch.from_numpy(read), use_cache=False).logits.numpy()
