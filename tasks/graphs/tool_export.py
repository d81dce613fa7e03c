"""The export of a checkpoint by transformers 5, as a tool in an environment of its own: see docs/adr/0029.

Rows are encoded here, PyTorch answers there, and the graph is checked here, as one of Optimum's. What reads files of
the checkpoint runs in processes without a network. Imports little: those come up for seconds of work.
"""

import importlib.metadata
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.records import OnnxArtifact, SourceFiles
from tasks.checkpoints.architectures import NEWER_TOOL
from tasks.execution.isolate import run_isolated
from tasks.execution.offline import go_offline
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.execution.tools.catalog import find_tool
from tasks.execution.tools.run import run_tool
from tasks.model_tasks import ModelTask, model_task
from tasks.model_tasks.inputs.texts import TEXT_INPUTS, find_padding

# transformers' class for each of Optimum's tasks, and the outputs that Optimum gives its graphs.
HEADS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "text-classification": ("AutoModelForSequenceClassification", ("logits",)),
    "token-classification": ("AutoModelForTokenClassification", ("logits",)),
    "question-answering": ("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
    "image-classification": ("AutoModelForImageClassification", ("logits",)),
    "semantic-segmentation": ("AutoModelForSemanticSegmentation", ("logits",)),
    "feature-extraction": ("AutoModel", ("last_hidden_state",)),
}
BATCH, SEQUENCE = "batch_size", "sequence_length"
# As many rows, of as many tokens, is the graph compared on: a graph fits the batch and length that it was traced with.
ODD_CUTS = ((1, None), (3, 7), (2, 3), (5, None))
OPSET = 18


def export_with_tool(
    source: SourceFiles,
    task: ModelTask,
    inputs: Sequence[Any],
    largest: Mapping[str, int],
    *,
    into: Path,
    on_progress: OnProgress,
) -> OnnxArtifact:
    """Export a checkpoint to `into`, and compare the graph with PyTorch on `inputs`, cut at the `largest` sizes.

    Raises:
        BadInput, BuildError: as `run_exporter`; the tool cannot export it.
        EngineryError: as `run_exporter`; the tool cannot be installed.
    """
    tool = find_tool(NEWER_TOOL)
    exporter = f"transformers {tool.version} with torch {importlib.metadata.version('torch')}"
    with tempfile.TemporaryDirectory(prefix="export-") as scratch:
        folder = Path(scratch)
        cut = tuple(inputs), dict(largest)
        run_isolated(_write_request, source, task.name, *cut, folder, on_progress=ignore_progress)
        run_tool(tool, "export.py", folder, on_progress=on_progress)
        return run_isolated(_take_graph, source, folder, exporter, into, on_progress=ignore_progress)


def _write_request(
    source: SourceFiles, name: str, inputs: tuple[Any, ...], largest: dict[str, int], folder: Path, _: OnProgress
) -> None:
    go_offline()
    task = model_task(name)
    # A check tried the encoder before; what reaches this without one still ends in a sentence.
    task.measure_inputs(source.directory, inputs, largest)
    reads_texts = task.graph_inputs is not None and task.graph_inputs.are_tokens
    names = TEXT_INPUTS if reads_texts else ("pixel_values",)
    feed = task.open_encoder(source.directory, names, largest).encode(inputs)
    feeds: list[dict[str, Any]] = [
        feed,
        *(_cut(feed, rows, tokens if reads_texts else None) for rows, tokens in ODD_CUTS),
    ]
    files = [f"{number}.npz" for number in range(len(feeds))]
    for file, values in zip(files, feeds, strict=True):
        np.savez(folder / file, **values)
    auto_class, outputs = HEADS[task.export_task]
    request = {
        "name": source.source.name,
        "task": name,
        "checkpoint": str(source.directory.absolute()),
        "auto_class": auto_class,
        "outputs": outputs,
        "axes": {each: {0: BATCH, 1: SEQUENCE} if each in TEXT_INPUTS else {0: BATCH} for each in names},
        "pad_token_id": find_padding(source.directory) if reads_texts else None,
        "opset": OPSET,
        "feeds": files,
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")


def _cut(feed: Mapping[str, NDArray[Any]], rows: int, tokens: int | None) -> dict[str, NDArray[Any]]:
    """Return the first rows, and of each the first tokens."""
    return {
        name: np.ascontiguousarray(values[:rows] if tokens is None else values[:rows, :tokens])
        for name, values in feed.items()
    }


def _take_graph(source: SourceFiles, folder: Path, exporter: str, into: Path, _: OnProgress) -> OnnxArtifact:
    go_offline()
    import torch

    from tasks.graphs.export import check_axes, check_outputs, find_pooling, save_graph_alone
    from tasks.graphs.pooling import EMBEDDING, MASK, STATES, pool

    pooling = find_pooling(source)
    onnx = save_graph_alone(folder, into, {}, exporter, pooling)
    check_axes(source.source.name, onnx)
    for file in json.loads((folder / "request.json").read_text(encoding="utf-8"))["feeds"]:
        with (
            np.load(folder / file, allow_pickle=False) as feed,
            np.load((folder / file).with_suffix(".answers.npz"), allow_pickle=False) as answers,
        ):
            given, expected = dict(feed), dict(answers)
        if pooling is not None:
            states, mask = torch.from_numpy(expected[STATES]), torch.from_numpy(given[MASK])
            expected = {EMBEDDING: pool(states, mask, pooling).numpy()}
        check_outputs(onnx, given, expected)
    return onnx
