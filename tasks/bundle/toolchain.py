"""TODO: tasks/bundle/toolchain.py."""

import importlib.metadata
from functools import cache
from pathlib import Path

from registry.digest import digest_of, file_sha256

# What a bundle's reader needs besides the engine: text in, so the tokenizer; labels are in the manifest.
SERVING_FILES = ("tokenizer.json",)


TOOLS = (
    "enginery",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "nvidia-modelopt",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "datasets",
    "tokenizers",
)


def toolchain() -> tuple[tuple[str, str], ...]:
    """(package, version) of every installed tool that decides what an engine is."""
    installed = {name: _version(name) for name in TOOLS}
    return tuple((name, version) for name, version in installed.items() if version)


@cache
def own_code() -> str:
    """Digest of the code that makes and judges engines: between two releases of Enginery its version says nothing."""
    root = Path(__file__).parents[2]
    files = (file for package in ("calibration_data", "tasks", "flows") for file in (root / package).rglob("*.py"))
    return digest_of(sorted((file.relative_to(root).as_posix(), file_sha256(file)) for file in files))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
