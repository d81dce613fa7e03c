"""PyTorch to ONNX with dynamic batch and sequence axes, and the proof that both compute the same.

Checkpoints go through Optimum (TorchScript route, opset 18), plain modules through torch.onnx's dynamo route.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from registry.digest import digest_of, record_tree
from registry.errors import BadInput, EngineryError
from registry.records import OnnxArtifact, Precision, SourceFiles, Tensor
from tasks.checkpoints.module import load_module
from tasks.graphs.session import exact_options
from tasks.model_tasks.text_inputs import TEXT_INPUTS

Feed = Mapping[str, NDArray[Any]]
GRAPH = "model.onnx"
# Of the largest magnitude in an output: fp32 sums in another order differ by about 1e-6 of it.
TOLERANCE = 1e-4
NOISY_LOGGERS = ("transformers", "optimum", "torch.onnx", "onnxscript", "onnx_ir", "torch.export")


def export_checkpoint(source: SourceFiles, *, opset: int = 18, into: Path) -> OnnxArtifact:
    """Export a checkpoint for its task to `into`/model.onnx (and external data beyond 2 GB).

    Inputs are int64 [batch_size, sequence_length], outputs are float32; axes' names are in the result.

    Raises:
        BadInput: the weights lack a part that the task needs, or Optimum has no such task or architecture.
    """
    with _quiet():
        from optimum.exporters.onnx import main_export

        _load(source)
        with tempfile.TemporaryDirectory(prefix="export-") as scratch:
            try:
                # The library by name: with sentence-transformers installed, Optimum would take another graph.
                main_export(
                    str(source.directory),
                    scratch,
                    task=source.source.task,
                    opset=opset,
                    device="cpu",
                    library_name="transformers",
                    trust_remote_code=False,
                    local_files_only=True,
                    do_validation=False,  # check_export compares on real rows
                )
            except (ValueError, KeyError, NotImplementedError) as error:
                raise BadInput(f"{source.source.name} cannot be exported for {source.source.task}: {error}") from error
            return _keep_graph(Path(scratch), into)


def export_module(
    callable_path: str,
    sample_inputs: Mapping[str, torch.Tensor] | None = None,
    *,
    opset: int = 20,
    into: Path,
) -> OnnxArtifact:
    """Export the module that "package.module:callable" returns to `into`/model.onnx, with a dynamic batch axis.

    Inputs named as a text encoder's (input_ids, attention_mask, token_type_ids) get a dynamic sequence axis too.

    The callable takes nothing and returns (torch.nn.Module, inputs by the names of forward's arguments);
    `sample_inputs` replaces those. The callable is the user's own code and runs in this process.

    Raises:
        BadInput: the path cannot be resolved, or the module cannot be exported.
    """
    module, samples = load_module(callable_path)
    samples = dict(sample_inputs or samples)
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", min=2)}
    # A sample of one row would be specialised: two rows keep the axis free.
    rows = {
        name: sample.repeat(2, *[1] * (sample.dim() - 1)) if sample.shape[0] == 1 else sample
        for name, sample in samples.items()
    }
    with _quiet(), tempfile.TemporaryDirectory(prefix="export-") as scratch:
        try:
            torch.onnx.export(
                module,
                (),
                Path(scratch) / GRAPH,
                kwargs=rows,
                input_names=list(rows),
                opset_version=opset,
                dynamo=True,
                dynamic_shapes={name: axes if name in TEXT_INPUTS else {0: axes[0]} for name in rows},
                external_data=False,
                verbose=False,
            )
        except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BadInput(f"{callable_path} cannot be exported to ONNX opset {opset}: {first}") from error
        return _keep_graph(Path(scratch), into)


def check_export(reference: SourceFiles | torch.nn.Module, onnx: OnnxArtifact, feed: Feed) -> float:
    """Largest absolute difference between PyTorch and ONNX Runtime over all outputs on `feed`.

    Raises:
        EngineryError: an output differs by more than 1e-4 of its largest magnitude in PyTorch, or is not finite.
    """
    module = _load(reference) if isinstance(reference, SourceFiles) else reference
    names = [tensor.name for tensor in onnx.outputs]
    expected = _run_module(module, names, {name: torch.from_numpy(values) for name, values in feed.items()})
    worst = 0.0
    for name, wanted, found in zip(names, expected, _run_graph(onnx, names, feed), strict=True):
        bound = TOLERANCE * float(np.abs(wanted).max())
        difference = float(np.abs(wanted - found).max()) if wanted.shape == found.shape else float("inf")
        if not difference <= bound:  # NaN is never within
            raise EngineryError(
                f"{onnx.path}: output {name} differs from PyTorch by {difference:.3g} on {len(wanted)} rows, "
                f"at most {bound:.3g} ({TOLERANCE:g} of its largest value) is accepted: export it again"
            )
        worst = max(worst, difference)
    return worst


def _run_graph(onnx: OnnxArtifact, names: list[str], feed: Feed) -> list[NDArray[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx.path), exact_options(), providers=["CPUExecutionProvider"])
    return [np.asarray(values) for values in session.run(names, {t.name: feed[t.name] for t in onnx.inputs})]


def _run_module(module: torch.nn.Module, names: list[str], feed: dict[str, torch.Tensor]) -> list[NDArray[Any]]:
    with torch.inference_mode():
        outputs = module(**feed)
    if isinstance(outputs, Mapping):  # a transformers output: its fields are the graph's names
        outputs = tuple(outputs[name] for name in names)
    return [values.numpy() for values in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def _load(source: SourceFiles) -> torch.nn.Module:
    """The checkpoint as Optimum loads it, in eval mode; refused where transformers would invent weights."""
    from optimum.exporters.tasks import TasksManager

    with _quiet():
        try:
            auto = TasksManager.get_model_class_for_task(source.source.task, framework="pt", library="transformers")
        except (KeyError, ValueError) as error:
            raise BadInput(f"Optimum knows no task {source.source.task!r}: {error}") from error
        module, loading = auto.from_pretrained(
            source.directory, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if missing := sorted(loading["missing_keys"]):
        raise BadInput(
            f"{source.source.name} has no weights for {', '.join(missing[:3])}, which {source.source.task} needs: "
            "random ones would be exported; fit a head first, or take a checkpoint made for the task"
        )
    return module.float().eval()  # type: ignore[no-any-return]


def _keep_graph(scratch: Path, into: Path) -> OnnxArtifact:
    """Save the graph alone to `into`: exporters write tokenizers and scattered weights beside it."""
    import onnx

    graph = onnx.load(str(scratch / GRAPH))
    into.mkdir(parents=True, exist_ok=True)
    if any(into.iterdir()):
        raise BadInput(f"{into} is not an empty folder: give the graph a folder of its own")
    too_large = graph.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF
    onnx.save(graph, str(into / GRAPH), save_as_external_data=too_large, location=f"{GRAPH}_data")
    files = record_tree(into)
    opset = next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
    return OnnxArtifact(
        GRAPH,
        files,
        digest_of(files),
        Precision.FP32,
        opset,
        _tensors(graph.graph.input),
        _tensors(graph.graph.output),
        directory=into,
    )


def _tensors(values: Any) -> tuple[Tensor, ...]:
    """Name, numpy dtype and dimensions; a dynamic axis keeps its name, or gets one of its tensor and place."""
    import onnx

    return tuple(
        Tensor(
            value.name,
            str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(
                axis.dim_value if axis.HasField("dim_value") else axis.dim_param or f"{value.name}_{place}"
                for place, axis in enumerate(value.type.tensor_type.shape.dim)
            ),
        )
        for value in values
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, log lines or progress of the exporters on the terminal; their levels come back afterwards."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
