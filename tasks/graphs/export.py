"""PyTorch to ONNX with a dynamic batch axis, for texts a sequence axis too; the check that both compute the same.

Checkpoints go through Optimum (TorchScript route), plain modules through torch.onnx's dynamo route.
"""

import contextlib
import importlib.metadata
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from registry.errors import BadInput, EngineryError, first_line
from registry.records import NEW_TOKENS, OnnxArtifact, Precision, SourceFiles
from tasks.checkpoints.config import read_config
from tasks.checkpoints.module import load_module
from tasks.checkpoints.pooling import Pooling, read_pooling
from tasks.graphs.files import GRAPH_FILE, make_artifact, write_graph
from tasks.graphs.pooling import PooledEncoder, add_pooling
from tasks.graphs.session import exact_options
from tasks.model_tasks import model_task
from tasks.model_tasks.inputs.texts import TEXT_INPUTS, TOKENIZER, find_padding

CHECKPOINT_OPSET, MODULE_OPSET = 18, 20
# A share of the largest magnitude in an output: fp32 sums in another order differ by about 1e-6 of it.
TOLERANCE = 1e-4
# Optimum's name of the second axis, of tokens or of samples.
SEQUENCE = "sequence_length"
# By what PyTorch's own error says.
EXPORT_ADVICE = {
    "data-dependent": "forward() decides by the values of a tensor, which a graph cannot: use torch.where, or decide "
    "outside of the module",
    "missing a required argument": "forward() has an argument that the sample inputs lack: name them as forward() does",
    "unexpected keyword argument": "the sample inputs have a name that forward() lacks: name them as forward() does",
}
_CODE_SITE = re.compile(r'File "([^"]+)", line (\d+), in forward')
# Optimum warns of tied weights through the root logger.
NOISY_LOGGERS = ("root", "transformers", "optimum", "torch.onnx", "onnxscript", "onnx_ir", "torch.export", "torch.fx")


def export_checkpoint(source: SourceFiles, *, into: Path) -> OnnxArtifact:
    """Export a checkpoint for its task to `into`/model.onnx (and external data beyond 2 GB).

    Inputs of texts are int64 [batch_size, sequence_length], those of audio float32 [batch_size, samples], those of
    images float32 [batch_size, channels, height, width], all but the first fixed; outputs are float32; the artifact
    names their axes.

    Raises:
        BadInput: weights that the task needs are missing or do not fit their config.json, or the task or architecture
            is unknown.
    """
    task = model_task(source.source.task)
    fixed = task.fixed_sizes(source.directory)
    axes = fixed | ({SEQUENCE: "samples"} if "samples" in task.axes else {})
    with trace_checkpoint(source, fixed) as scratch:
        return save_graph_alone(scratch, into, axes, name_exporter("optimum-onnx"), find_pooling(source))


@contextlib.contextmanager
def trace_checkpoint(source: SourceFiles, fixed: Mapping[str, int]) -> Iterator[Path]:
    """Yield a folder with the graphs that Optimum exports of a checkpoint for its task, their axes as it names them.

    `fixed` are sizes of axes.

    Raises:
        BadInput: as `export_checkpoint`.
    """
    task = model_task(source.source.task)
    with silence_exporters():
        from optimum.exporters.onnx import onnx_export_from_model

        module = load_checkpoint(source)
        if TOKENIZER in task.serving_files:
            _set_padding(module, source)
        with tempfile.TemporaryDirectory(prefix="export-") as scratch, tempfile.TemporaryDirectory() as nothing:
            # Optimum would load and save the tokenizer that lies there, by classes of transformers.
            module.config.name_or_path = nothing
            try:
                onnx_export_from_model(
                    module,
                    scratch,
                    task=task.export_task,
                    opset=CHECKPOINT_OPSET,
                    device="cpu",
                    no_post_process=NEW_TOKENS in task.axes,  # it would make one graph with branches of two
                    do_validation=False,  # check_export compares on real rows
                    **fixed,  # code that computes with a size in Python is traced with the one that will be fed
                )
            except (MemoryError, OSError):
                raise
            except Exception as error:  # what an exporter raises depends on the architecture
                raise BadInput(
                    f"{source.source.name} cannot be exported for {source.source.task} ({first_line(error)[:300]}): "
                    "use a checkpoint of another architecture, or give a text model's network as source.module"
                ) from error
            yield Path(scratch)


def export_module(callable_path: str, *, into: Path) -> OnnxArtifact:
    """Export the module that "package.module:callable" returns to `into`/model.onnx, with a dynamic batch axis.

    Inputs named as a text encoder's (input_ids, attention_mask, token_type_ids) get a dynamic sequence axis too.

    The callable takes nothing and returns (torch.nn.Module, sample inputs by the names of forward's arguments).
    It is the user's own code and runs in this process.

    Raises:
        BadInput: the path cannot be resolved, or the module cannot be exported.
    """
    module, samples = load_module(callable_path)
    axes = {0: torch.export.Dim("batch_size"), 1: torch.export.Dim("sequence_length", min=2)}
    # A sample of one row would be specialised: two rows keep the axis free.
    rows = {
        name: sample.repeat(2, *[1] * (sample.dim() - 1)) if sample.shape[0] == 1 else sample
        for name, sample in samples.items()
    }
    with (
        silence_exporters(),
        contextlib.redirect_stderr(io.StringIO()),  # torch.export prints the graph of a module that it refuses
        tempfile.TemporaryDirectory(prefix="export-") as scratch,
    ):
        try:
            torch.onnx.export(
                module,
                (),
                Path(scratch) / GRAPH_FILE,
                kwargs=rows,
                input_names=list(rows),
                opset_version=MODULE_OPSET,
                dynamo=True,
                dynamic_shapes={name: axes if name in TEXT_INPUTS else {0: axes[0]} for name in rows},
                external_data=False,
                verbose=False,
            )
        except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
            raise BadInput(f"{callable_path} cannot be exported to ONNX: {_explain_refusal(error)}") from error
        onnx = save_graph_alone(Path(scratch), into, {}, name_exporter("torch"))
        check_axes(callable_path, onnx)
        return onnx


def check_axes(what: str, onnx: OnnxArtifact) -> None:
    """Check that the axes which rows differ in are dynamic; `what` names the module in the error.

    Raises:
        BadInput: the module's own code has fixed one.
    """
    for tensor in onnx.inputs:
        names = ("batch", "sequence") if tensor.name in TEXT_INPUTS else ("batch",)
        for name, size in zip(names, tensor.shape, strict=False):
            if not isinstance(size, str):
                raise BadInput(
                    f"{what}: the {name} axis of input {tensor.name} is fixed at {size}: its code uses that "
                    "size as a Python number; use tensor.shape, or -1 in views, so that any size works"
                )


def _explain_refusal(error: BaseException) -> str:
    """Say why a module was refused, where in its code as far as PyTorch names it, and what to do."""
    text, cause = str(error), error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    sites = _CODE_SITE.findall(text)
    site = f"{Path(sites[-1][0]).name}, line {sites[-1][1]}: " if sites else ""
    known = (advice for phrase, advice in EXPORT_ADVICE.items() if phrase in str(cause))
    unknown = f"{type(cause).__name__}: {first_line(cause)[:300]}; try torch.export.export on it with the same samples"
    return site + next(known, unknown)


def check_export(
    reference: SourceFiles | torch.nn.Module, onnx: OnnxArtifact, *feeds: Mapping[str, NDArray[Any]]
) -> None:
    """Check that the graph gives the same outputs as PyTorch on each of `feeds`.

    Raises:
        BadInput: PyTorch fails on a feed.
        EngineryError: an output differs by more than 1e-4 of its largest magnitude in PyTorch, or is not finite.
    """
    module = _load_reference(reference) if isinstance(reference, SourceFiles) else reference
    for feed in feeds:
        _compare(module, onnx, feed)


def _compare(module: torch.nn.Module, onnx: OnnxArtifact, feed: Mapping[str, NDArray[Any]]) -> None:
    names = [tensor.name for tensor in onnx.outputs]
    expected = _run_module(module, names, {name: torch.from_numpy(values) for name, values in feed.items()})
    check_outputs(onnx, feed, dict(zip(names, expected, strict=True)))


def check_outputs(onnx: OnnxArtifact, feed: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    """Check that the graph gives to a feed what PyTorch gave, by the outputs' names.

    Raises:
        EngineryError: as `check_export`.
    """
    names = [tensor.name for tensor in onnx.outputs]
    for name, actual in zip(names, _run_graph(onnx, names, feed), strict=True):
        # As float64, because booleans and whole numbers are outputs too.
        exact, values = expected[name], expected[name].astype(np.float64)
        bound = TOLERANCE * float(np.abs(values).max(initial=0.0))
        alike = exact.shape == actual.shape
        difference = float(np.abs(values - actual).max(initial=0.0)) if alike else float("inf")
        if not difference <= bound:  # NaN is never within
            raise EngineryError(
                f"{onnx.path}: output {name} differs from PyTorch by {difference:.3g} on {len(exact)} rows, "
                f"at most {bound:.3g} ({TOLERANCE:g} of its largest value) is accepted: export it again"
            )


def _run_graph(onnx: OnnxArtifact, names: list[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx.path), exact_options(), providers=["CPUExecutionProvider"])
    return [np.asarray(values) for values in session.run(names, {t.name: feed[t.name] for t in onnx.inputs})]


def _run_module(module: torch.nn.Module, names: list[str], feed: dict[str, torch.Tensor]) -> list[NDArray[Any]]:
    try:
        with torch.inference_mode():
            outputs = module(**feed)
    except (RuntimeError, IndexError, TypeError, ValueError, AssertionError) as error:
        raise BadInput(
            f"{type(module).__name__} fails in PyTorch on real rows ({first_line(error)[:300]}): its config.json and "
            "its tokenizer or image processor must describe its weights"
        ) from error
    if isinstance(outputs, Mapping):  # a transformers output: its fields are the graph's names
        outputs = tuple(outputs[name] for name in names)
    return [values.numpy() for values in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def load_checkpoint(source: SourceFiles) -> Any:
    """Load the checkpoint in float32 and eval mode; refuse it where transformers would invent weights."""
    from optimum.exporters.tasks import TasksManager

    with silence_exporters():
        from transformers import AutoConfig

        try:
            auto = TasksManager.get_model_class_for_task(
                model_task(source.source.task).export_task,
                framework="pt",
                model_type=read_config(source.directory)["model_type"],
                library="transformers",
            )
        except (KeyError, ValueError) as error:
            raise BadInput(
                f"Optimum cannot export for the task {source.source.task!r}: correct task in the recipe"
            ) from error
        try:
            config = AutoConfig.from_pretrained(source.directory, trust_remote_code=False, local_files_only=True)
            # Never what the file asks for, which may be a kernel of a repository: transformers chooses one of its own.
            config._attn_implementation = None  # noqa: SLF001  # there is no other way to unset it
            module, loading = auto.from_pretrained(
                source.directory,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except MemoryError:
            raise
        except Exception as error:  # transformers raises whatever its config.json leads to
            raise BadInput(
                f"{source.source.name} cannot be loaded ({type(error).__name__}: {first_line(error)[:300]}): its "
                "config.json must describe its weights, with an architecture that this transformers has"
            ) from error
    if missing := sorted(loading["missing_keys"]):
        raise BadInput(
            f"{source.source.name} has no weights for {', '.join(missing[:3])}, which {source.source.task} needs: "
            "random ones would be exported; fit a head first, or use a checkpoint made for the task"
        )
    return module.float().eval()


def _set_padding(module: Any, source: SourceFiles) -> None:
    """Tell a module that finds its last token by the padding what the encoder pads with.

    Raises:
        BadInput: the encoder has no padding.
    """
    if module.config.pad_token_id is not None:
        return
    if (padding := find_padding(source.directory)) is None:
        raise BadInput(
            f"{source.source.name} has no token for padding: set pad_token_id in config.json, and padding in "
            "tokenizer.json"
        )
    module.config.pad_token_id = padding


def find_pooling(source: SourceFiles) -> Pooling | None:
    """Return how a sentence encoder pools; None for other tasks, whose heads are in the graph already."""
    task = model_task(source.source.task).export_task
    return read_pooling(source.directory) if task == "feature-extraction" else None


def _load_reference(source: SourceFiles) -> Any:
    pooling = find_pooling(source)
    return load_checkpoint(source) if pooling is None else PooledEncoder(load_checkpoint(source), pooling)


def name_exporter(package: str) -> str:
    """Return the name and version of the installed package that exports."""
    return f"{package} {importlib.metadata.version(package)}"


def save_graph_alone(
    scratch: Path, into: Path, axes: Mapping[str, int | str], exporter: str, pooling: Pooling | None = None
) -> OnnxArtifact:
    """Save the graph alone to `into`, `exporter` names what made it; `axes` has the sizes, or other names, of axes.

    Exporters write tokenizers and scattered weights beside it.
    """
    import onnx

    into.mkdir(parents=True, exist_ok=True)
    if any(into.iterdir()):
        raise BadInput(f"{into} is not an empty folder: give the graph a folder of its own")
    model = onnx.load(str(scratch / GRAPH_FILE))
    if pooling is not None:
        add_pooling(model, pooling)
    given = {value.name for value in model.graph.input}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            size = axes.get(axis.dim_param)
            if isinstance(size, int) and value.name not in given:
                axis.dim_param = f"map_{axis.dim_param}"  # Optimum calls the height of a map so too, which is less
            elif isinstance(size, int):
                axis.dim_value = size
            elif size is not None:
                axis.dim_param = size
            elif SEQUENCE in axes and SEQUENCE in axis.dim_param:
                axis.dim_param = "frames"  # Optimum wrote a formula of the samples
    write_graph(model, into)
    return replace(make_artifact(into, Precision.FP32), exporter=exporter)


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Hide the exporters' warnings, log lines and progress; restore their log levels afterwards."""
    from transformers.utils import logging as transformers_logging

    # transformers sets its logger up, level included, at the first use: that is before, not in the block.
    transformers_logging.get_logger()
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
