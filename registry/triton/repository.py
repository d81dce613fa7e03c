"""Place verified bundles as a version of a model in a Triton repository; a server never sees half a model.

`REPOSITORY/MODEL/VERSION` is staged beside the repository, on its file system, and renamed into it. config.pbtxt names
the one version that is served and changes last, in one rename. Older versions stay for a rollback.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from registry.bundle.manifest import MANIFEST_FILE, write_manifest
from registry.digest import check_record, record_tree
from registry.errors import BadInput, EngineryError, TornBundle
from registry.host.durable import replace_file, sync
from registry.names import check_version
from registry.records import EngineManifest, FileRecord
from registry.triton.config import config_text, is_own_config
from registry.triton.model import BUNDLE_FOLDER, PythonModel, TritonModel, check_servable, engine_file
from registry.triton.warmup import bundled_rows, warmup_entries

CONFIG_FILE = "config.pbtxt"
WARMUP_FOLDER = "warmup"


@dataclass(frozen=True)
class VerifiedBundle:
    """A bundle's folder, and its manifest as it was verified: what the folder holds now is checked against it."""

    folder: Path
    manifest: EngineManifest


@dataclass(frozen=True)
class PlacedModel:
    """A version in a model repository; `previous_config` is the config.pbtxt it replaced, None for a new model."""

    repository: Path
    model: str
    version: int
    digest: str
    reused: bool
    previous_config: bytes | None = field(repr=False)

    @property
    def folder(self) -> Path:
        """The model's folder in the repository."""
        return self.repository / self.model


def place_triton(
    bundles: Sequence[VerifiedBundle],
    repository: Path,
    *,
    version: int,
    python_model: PythonModel | None = None,
    container: str | None = None,
) -> PlacedModel:
    """Place verified bundles of one model as one version of it; each file is checked as it is copied.

    The first bundle's warmup.json gives the rows that Triton warms up with.

    Args:
        bundles: fetched and verified; several must differ in compute capability.
        repository: Triton's model repository, created if missing. Staging lies beside it, so it must not be a mount
            of its own.
        version: Triton's version of the model; usually the registry's version of the engine.
        python_model: place this around an ONNX Runtime engine, in place of the bare engine.
        container: the Triton container that serves it, such as "26.08"; its TensorRT must be the engine's.

    Raises:
        TornBundle, DigestMismatch: a bundle differs from what was published; nothing was placed.
        Incompatible: Triton cannot serve an engine, or not these together.
        BadInput: `version` is below 1, Triton's files cannot hold a name, label or row, the repository has a model of
            that name that Enginery did not place, or tritonclient is missing.
        EngineryError: this host cannot write the repository; config.pbtxt names a whole version, old or new.
    """
    check_version(version)
    rows = bundled_rows(bundles[0].folder, bundles[0].manifest)
    model = TritonModel(tuple(bundle.manifest for bundle in bundles), version, rows, python_model)
    check_servable(model, container)
    config, beside = config_text(model), _files_beside(model)
    repository = repository.absolute()
    try:
        with _staging(repository) as stage:
            _stage_version(model, bundles, stage / str(version))
            return _swap_in(model, repository, stage, config=config, beside=beside)
    except OSError as error:
        raise EngineryError(
            f"{repository / model.name}: cannot place version {version} ({error.strerror or error}); config.pbtxt "
            "still names a whole version, most likely the previous one: free space, fix the permissions, or move the "
            "repository into a subfolder of its mount, and place it again"
        ) from error


def restore(placed: PlacedModel) -> None:
    """Restore the config.pbtxt that `placed` replaced; remove the model if it was new.

    Raises:
        EngineryError: this host cannot write the repository.
    """
    try:
        with _staging(placed.repository) as stage:
            if placed.previous_config is None:
                placed.folder.rename(stage / placed.model)
            else:
                replace_file(placed.folder / CONFIG_FILE, placed.previous_config, stage=stage)
    except OSError as error:
        raise EngineryError(
            f"{placed.folder}: cannot restore config.pbtxt ({error.strerror or error}): fix the folder's permissions "
            "and place the version to serve again"
        ) from error


def prune(placed: PlacedModel, keep: int) -> None:
    """Remove all but the newest `keep` versions of a model; the placed version always stays.

    Raises:
        EngineryError: this host cannot write the repository.
    """
    versions = sorted((int(path.name) for path in placed.folder.iterdir() if path.name.isdecimal()), reverse=True)
    try:
        with _staging(placed.repository) as stage:
            for version in versions[keep:]:
                if version != placed.version:
                    (placed.folder / str(version)).rename(stage / str(version))
                    for file in (*placed.folder.glob(f"labels-{version}.txt"), *placed.folder.glob(f"*/{version}-*")):
                        file.unlink()
    except OSError as error:
        raise EngineryError(
            f"{placed.folder}: cannot remove old versions ({error.strerror}): fix its permissions"
        ) from error


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """Create a folder beside the repository: inside it, Triton would take the folder for a model."""
    repository.mkdir(parents=True, exist_ok=True)
    with FileLock(repository.parent / f".{repository.name}.lock"):
        prefix = f".{repository.name}-incoming-"
        for leftover in repository.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=repository.parent) as stage:
            yield Path(stage)


def _stage_version(model: TritonModel, bundles: Sequence[VerifiedBundle], into: Path) -> None:
    into.mkdir()
    if model.python_model is not None:
        _stage_python_model(model.python_model, bundles[0], into)
        return
    for bundle in bundles:
        build = bundle.manifest.build
        for record in build.files:
            name = engine_file(model, bundle.manifest) if record.path == build.file else record.path
            _copy_file(bundle.folder, record, into / name)


def _stage_python_model(python_model: PythonModel, bundle: VerifiedBundle, into: Path) -> None:
    # In a folder of its own: the server's Python finds modules in the version's folder.
    for record in bundle.manifest.files:
        _copy_file(bundle.folder, record, into / BUNDLE_FOLDER / record.path)
    (into / BUNDLE_FOLDER / MANIFEST_FILE).write_bytes(write_manifest(bundle.manifest))
    for name, content in python_model.files:
        (into / name).write_bytes(content)


def _copy_file(bundle: Path, record: FileRecord, to: Path) -> None:
    if to.exists():
        raise TornBundle(f"{bundle} has a second file for {to.name}: place bundles with one engine file each")
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(bundle / record.path, to)
    # Triton loads this copy, so this copy must be verified.
    check_record(to.parent, FileRecord(to.name, record.sha256, record.size_bytes))


def _files_beside(model: TritonModel) -> dict[str, bytes]:
    """Return the label and warm-up files; their names hold the version, so no other version's files change."""
    files = {f"{WARMUP_FOLDER}/{file}": raw for entry in warmup_entries(model) for _, file, _, raw in entry.files}
    classes = model.manifest.source.classes
    if classes and model.python_model is None:
        files[model.labels_file] = "".join(f"{name}\n" for name in classes).encode()
    return files


def _swap_in(
    model: TritonModel, repository: Path, stage: Path, *, config: bytes, beside: dict[str, bytes]
) -> PlacedModel:
    folder = repository / model.name
    version, incoming = folder / str(model.version), stage / str(model.version)
    current = _read_own_config(folder)
    reused = current == config and _is_same_tree(version, incoming) and _has_files(folder, beside)
    placed = PlacedModel(repository, model.name, model.version, model.manifest.build.digest, reused, current)
    if reused:
        return placed
    # A new model is one rename of its whole folder: Triton never sees it without its config.
    into = stage / model.name if current is None else folder
    into.mkdir(mode=0o755, exist_ok=True)
    for name, raw in beside.items():
        (into / name).parent.mkdir(exist_ok=True)
        replace_file(into / name, raw, stage=stage)
    _sync_tree(incoming)
    if os.path.lexists(into / version.name):
        (into / version.name).rename(stage / "replaced")
    incoming.rename(into / version.name)
    replace_file(into / CONFIG_FILE, config, stage=stage)
    if current is None:
        into.rename(folder)
    sync(repository)
    return placed


def _read_own_config(folder: Path) -> bytes | None:
    config = _read_if_present(folder / CONFIG_FILE)
    if os.path.lexists(folder) and (config is None or not is_own_config(config)):
        raise BadInput(f"{folder} exists and was not placed by Enginery: it stays; place into another repository")
    return config


def _read_if_present(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _has_files(folder: Path, files: dict[str, bytes]) -> bool:
    return all(_read_if_present(folder / name) == raw for name, raw in files.items())


def _is_same_tree(one: Path, other: Path) -> bool:
    try:
        return record_tree(one) == record_tree(other)
    except TornBundle:
        return False


def _sync_tree(root: Path) -> None:
    # If the rename survived a power cut and the bytes did not, a torn model would look whole.
    for path in (*root.rglob("*"), root):
        sync(path)
