"""Plain PyTorch modules that a callable of the user's returns: loaded, hashed, and recorded as a source.

A module has no checkpoint folder: its weights come from the callable, and the recipe names its tokenizer and classes.
The callable is the user's own code and runs in this process.
"""

import hashlib
import importlib
import importlib.metadata
import re
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from registry.digest import digest_of, file_sha256, record_tree
from registry.errors import BadInput, first_line
from registry.names import check_name
from registry.records import ModelSource, SourceFiles
from tasks.model_tasks.own.code import TASK_FILE

if TYPE_CHECKING:  # a second of imports, for sources that are modules alone
    import torch

CALLABLE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)


@dataclass(frozen=True)
class Processor:
    """The folder of a tokenizer or image processor, and the `names` of the files in it that a task reads.

    `code` is the file of a user's own task, which is copied as TASK_FILE whatever its name.
    """

    folder: Path
    names: tuple[str, ...]
    code: Path | None = None

    def digest(self) -> str:
        """Return the digest of the files.

        Raises:
            BadInput: one is missing.
        """
        return digest_of([(name, file_sha256(file)) for name, file in self.list_files().items()])

    def copy(self, into: Path) -> None:
        """Copy the files.

        Raises:
            BadInput: one is missing.
        """
        for name, file in self.list_files().items():
            shutil.copyfile(file, into / name)

    def list_files(self) -> dict[str, Path]:
        """List the files by the names that they get.

        Raises:
            BadInput: one is missing.
        """
        files = {name: self.folder / name for name in self.names if self.code is None or name != TASK_FILE}
        if self.code is not None:
            files[TASK_FILE] = self.code
        if missing := next((name for name, file in files.items() if not file.is_file()), None):
            if self.code is not None:
                raise BadInput(f"{self.folder} has no {missing}, which FILES of {self.code.name} names: put it there")
            raise BadInput(
                f"{self.folder} has no {missing}: name the folder of the model's processor in source.processor"
            )
        return files


def load_module(callable_path: str) -> "tuple[torch.nn.Module, dict[str, torch.Tensor]]":
    """Call "package.module:callable"; return its module, in eval mode, and its sample inputs by name.

    Raises:
        BadInput: the path has another form, cannot be imported, or returns something else.
    """
    import torch

    parts = CALLABLE.fullmatch(callable_path)
    if parts is None:
        raise BadInput(f"{callable_path!r:.100} is not of the form package.module:callable: correct it in the recipe")
    try:
        factory = getattr(importlib.import_module(parts[1]), parts[2], None)
    except ImportError as error:
        raise BadInput(f"{callable_path}: {error}; install it, or put its folder on PYTHONPATH") from error
    except Exception as error:  # the user's own code
        raise BadInput(f"{callable_path}: importing it failed with {_describe_failure(error)}: correct it") from error
    if not callable(factory):
        raise BadInput(f"{parts[1]} has no callable named {parts[2]}: correct {callable_path}")
    try:
        pair = factory()
    except Exception as error:  # the user's own code
        raise BadInput(f"{callable_path}: calling it failed with {_describe_failure(error)}: correct it") from error
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], torch.nn.Module)):
        raise BadInput(f"{callable_path} must return (torch.nn.Module, sample inputs), not {type(pair).__name__}")
    module, samples = pair
    if not (
        isinstance(samples, Mapping)
        and samples
        and all(
            isinstance(key, str) and isinstance(value, torch.Tensor) and value.dim() for key, value in samples.items()
        )
    ):
        raise BadInput(f"{callable_path} must return its sample inputs as named tensors with a batch axis")
    return module.eval(), dict(samples)


def _describe_failure(error: Exception) -> str:
    """Name an error of the user's code and the line that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} ({first_line(error)[:300]}) at {Path(frame.filename).name}, line {frame.lineno}"


def module_digest(callable_path: str) -> str:
    """Return the hex sha256 of a module's class, weights and source file: what its export depends on.

    Weights are its parameters and buffers: name, dtype, shape and bytes.

    Raises:
        BadInput: as `load_module`.
    """
    module, _ = load_module(callable_path)
    code = importlib.import_module(type(module).__module__).__file__
    weights = [
        (name, str(tensor.dtype), list(tensor.shape), hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest())
        for name, tensor in module.state_dict().items()
    ]
    return digest_of((callable_path, type(module).__qualname__, file_sha256(Path(code)) if code else "", weights))


def from_module(
    callable_path: str,
    weights: str,
    processor: Processor,
    classes: tuple[str, ...],
    *,
    name: str,
    task: str,
    into: Path,
) -> SourceFiles:
    """Copy the processor of a plain module into `into`, and record the module as a source.

    `weights` is the module's digest (`module_digest`), which becomes its revision.

    Raises:
        BadInput: the processor lacks a file.
    """
    check_name(name, what="model name")
    processor.copy(into)
    files = record_tree(into)
    digest = digest_of((weights, files, classes))
    return SourceFiles(ModelSource(name, f"module:{callable_path}", weights, task, classes), digest, files, into)
