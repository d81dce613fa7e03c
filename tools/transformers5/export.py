"""Export a checkpoint by transformers 5 and torch.onnx, and give PyTorch's answers to compare the graph with.

Runs in the tool's own environment, without a network. Reads request.json (`Request`) and the feeds; writes model.onnx,
and beside each feed, N.npz, PyTorch's outputs, N.answers.npz.
"""

import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import transformers

from registry.errors import BadInput, first_line

# Every architecture has it, and a graph of it has plain MatMul and Softmax, which quantizers know.
ATTENTION = "eager"
Tell = Callable[[str, float], None]


class Request(TypedDict):
    """What to export; `axes` are names of dynamic axes by input and position, `pad_token_id` is set where none is."""

    name: str
    task: str
    checkpoint: str
    auto_class: str
    outputs: list[str]
    axes: dict[str, dict[str, str]]
    pad_token_id: int | None
    opset: int
    feeds: list[str]


class Head(torch.nn.Module):
    """A model whose arguments and results are the graph's inputs and outputs, in order."""

    def __init__(self, model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        """Wrap a model of transformers."""
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs by name."""
        results = self.model(**dict(zip(self.inputs, values, strict=True)), return_dict=True)
        return tuple(results[name] for name in self.outputs)


def run(folder: Path, tell: Tell) -> None:
    """Export the checkpoint that `folder`/request.json names.

    Raises:
        BadInput: it cannot be loaded or exported, or fails on a feed.
    """
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    request: Request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    tell("load", 0.0)
    model = load(request)
    inputs = choose_inputs(model, tuple(request["axes"]))
    feeds = [read_feed(folder / file, inputs) for file in request["feeds"]]
    head = Head(model, inputs, tuple(request["outputs"]))
    tell("answer", 0.2)
    for file, feed in zip(request["feeds"], feeds, strict=True):
        answers = answer(head, feed, request)
        np.savez((folder / file).with_suffix(".answers.npz"), **dict(zip(request["outputs"], answers, strict=True)))
    tell("export", 0.4)
    export(head, feeds[0], request, folder / "model.onnx")


def load(request: Request) -> Any:
    """Load the checkpoint in float32 and eval mode; refuse it where transformers would invent weights."""
    auto = getattr(transformers, request["auto_class"])
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = transformers.AutoConfig.from_pretrained(request["checkpoint"], **options)
        if getattr(config, "pad_token_id", None) is None:  # it finds the last token by it
            config.pad_token_id = request["pad_token_id"]
        model, loading = auto.from_pretrained(
            request["checkpoint"],
            config=config,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except MemoryError:
        raise
    except Exception as error:  # transformers raises whatever its config.json leads to
        raise BadInput(
            f"{request['name']} cannot be loaded by transformers {transformers.__version__} ({type(error).__name__}: "
            f"{first_line(error)[:300]}): its config.json must describe its weights"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise BadInput(
            f"{request['name']} has no weights for {', '.join(missing[:3])}, which {request['task']} needs: random "
            "ones would be exported; use a checkpoint made for the task"
        )
    return model.float().eval()


def choose_inputs(model: Any, offered: tuple[str, ...]) -> tuple[str, ...]:
    """Return what the model takes of the inputs that there are; as Optimum, no token types where there is one only."""
    taken = inspect.signature(model.forward).parameters
    one_type = (getattr(model.config, "type_vocab_size", None) or 0) < 2
    return tuple(name for name in offered if name in taken and not (name == "token_type_ids" and one_type))


def read_feed(file: Path, inputs: tuple[str, ...]) -> tuple[torch.Tensor, ...]:
    """Read the inputs of a batch."""
    with np.load(file, allow_pickle=False) as arrays:
        return tuple(torch.from_numpy(arrays[name]) for name in inputs)


def answer(head: Head, feed: tuple[torch.Tensor, ...], request: Request) -> list[Any]:
    """Return PyTorch's outputs for a batch.

    Raises:
        BadInput: PyTorch fails on it.
    """
    try:
        with torch.inference_mode():
            return [values.numpy() for values in head(*feed)]
    except KeyError as error:
        raise BadInput(
            f"{request['name']} gives no output {first_line(error)[:100]} for {request['task']}: use a checkpoint of "
            "another architecture"
        ) from error
    except (RuntimeError, IndexError, TypeError, ValueError, AssertionError) as error:
        raise BadInput(
            f"{request['name']} fails in PyTorch on real rows ({first_line(error)[:300]}): its config.json and its "
            "tokenizer or image processor must describe its weights"
        ) from error


def export(head: Head, feed: tuple[torch.Tensor, ...], request: Request, file: Path) -> None:
    """Write the graph; the named axes are dynamic unless the model's own code fixes them.

    Raises:
        BadInput: torch.onnx cannot export it.
    """
    axes = [{int(axis): name for axis, name in request["axes"][name].items()} for name in head.inputs]
    # An axis of size 1 would be taken for a constant.
    sample = tuple(
        value.repeat([2 if axis in named and size == 1 else 1 for axis, size in enumerate(value.shape)])
        for value, named in zip(feed, axes, strict=True)
    )
    try:
        torch.onnx.export(
            head,
            sample,
            file,
            input_names=list(head.inputs),
            output_names=list(head.outputs),
            opset_version=request["opset"],
            dynamo=True,
            dynamic_shapes=(tuple(axes),),
            verbose=False,
        )
    except (RuntimeError, ValueError, TypeError, AssertionError, torch.onnx.OnnxExporterError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise BadInput(
            f"{request['name']} cannot be exported for {request['task']} by torch.onnx ({type(cause).__name__}: "
            f"{first_line(cause)[:300]}): use a checkpoint of another architecture"
        ) from error
