"""The tools and the code that decide what an engine is: their versions and their digest."""

import importlib.metadata
from functools import cache
from pathlib import Path

from registry.digest import digest_of, file_sha256

TOOLS = (
    "enginery",
    "torch",
    "transformers",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "nvidia-modelopt",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "datasets",
    "tokenizers",
    "pillow",
)


def toolchain() -> tuple[tuple[str, str], ...]:
    """Return (package, version) of every installed tool that decides what an engine is."""
    installed = {name: _read_version(name) for name in TOOLS}
    return tuple((name, version) for name, version in installed.items() if version)


@cache
def own_code() -> str:
    """Return the digest of the code that makes and judges engines, since the version is the same between releases."""
    root = Path(__file__).parents[2]
    packages = [root / name for name in ("calibration_data", "tasks", "flows", "tools")]
    # The text files of tools are their locked requirements.
    files = (file for folder in packages for ending in ("*.py", "*.txt") for file in folder.rglob(ending))
    return digest_of(sorted((file.relative_to(root).as_posix(), file_sha256(file)) for file in files))


def _read_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
