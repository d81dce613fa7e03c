"""An artifact of several graphs taken apart and put together, and the optimization profiles of each part."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from registry.digest import digest_of
from registry.records import (
    NEW_TOKENS,
    AxisRange,
    FileRecord,
    Generation,
    OnnxArtifact,
    Part,
    ShapeProfile,
    Tensor,
)

# Reads the input once, and gives what the decoder attends to at every step.
ENCODER = "encoder"
# Reads one token and the past, and gives the logits of the next token and the longer past.
DECODER = "decoder"
PARTS = {ENCODER, DECODER}
# The axis of the tokens that a decoder has read before.
PAST_AXIS = "past"
# What a decoder reads of its past, and what it gives for the next step, begin so.
PAST, PRESENT = "past_key_values.", "present."
# What an engine of parts gives: the tokens that each row wrote, and the natural logarithm of each one's probability.
WRITTEN = (
    Tensor("tokens", "int64", ("batch_size", NEW_TOKENS)),
    Tensor("log_probs", "float32", ("batch_size", NEW_TOKENS)),
)


def digest_files(files: Sequence[FileRecord], generation: Generation | None) -> str:
    """Return an engine's digest: its file's sha256, or where it has parts the digest over the records of all files."""
    return files[0].sha256 if generation is None else digest_of(tuple(files))


def split_graphs(onnx: OnnxArtifact) -> dict[str, OnnxArtifact]:
    """Return the graph of each part as an artifact of its own, by the part's name."""
    if onnx.generation is None:
        raise ValueError(f"{onnx.file} is one graph")
    return {part.name: _take_part(onnx, part) for part in onnx.generation.parts}


def _take_part(onnx: OnnxArtifact, part: Part) -> OnnxArtifact:
    prefix = f"{part.name}/"
    files = tuple(
        replace(record, path=record.path.removeprefix(prefix))
        for record in onnx.files
        if record.path.startswith(prefix)
    )
    return replace(
        onnx,
        file=part.file.removeprefix(prefix),
        files=files,
        digest=digest_of(files),
        inputs=part.inputs,
        outputs=part.outputs,
        quantized_from=None,
        generation=None,
        directory=onnx.directory / part.name,
    )


def join_graphs(graphs: Mapping[str, OnnxArtifact], rules: Generation, directory: Path) -> OnnxArtifact:
    """Return the graphs that lie in folders of their names under `directory` as one artifact.

    `rules` steer what it writes; their parts are replaced. Precision and opset are those of the first graph.
    """
    parts = tuple(Part(name, f"{name}/{graph.file}", graph.inputs, graph.outputs) for name, graph in graphs.items())
    files = tuple(
        replace(record, path=f"{name}/{record.path}") for name, graph in graphs.items() for record in graph.files
    )
    generation, first = replace(rules, parts=parts), next(iter(graphs.values()))
    return replace(
        first,
        file=parts[0].file,
        files=files,
        digest=digest_of((files, generation)),
        outputs=WRITTEN,
        generation=generation,
        directory=directory,
    )


def fit_profiles(part: str, generation: Generation, profiles: Sequence[ShapeProfile]) -> tuple[ShapeProfile, ...]:
    """Return the optimization profiles of a part.

    A decoder has read all of the prompt and all new tokens but the last one when it writes that one; on average it has
    read half of them.
    """
    return tuple(_fit_profile(part, generation, profile) for profile in profiles)


def _fit_profile(part: str, generation: Generation, profile: ShapeProfile) -> ShapeProfile:
    axes = {name: span for name, span in profile.axes if name != NEW_TOKENS}
    written = profile.axis(NEW_TOKENS)
    if part == DECODER and written is not None:
        read = len(generation.prompt) - 1
        axes[PAST_AXIS] = AxisRange(0, read + written.opt // 2, max(1, read + written.max - 1))
    return ShapeProfile.of(**axes)
