"""Finished stages from host to host through MLflow's artifact store: one tar each, verified on arrival."""

import shutil
import tarfile
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from flows.inputs.strict_yaml import Sha256
from registry.digest import file_sha256
from registry.errors import TornBundle
from registry.mlflow.runs.run_files import RunFiles
from tasks.execution.workspace import Workspace

T = TypeVar("T")


class StageArchive(BaseModel):
    """Where one finished stage (`kind`, `key`) lies as a tar, with the tar's sha256 and size in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,40}$")]
    key: Sha256


def send(files: RunFiles, workspace: Workspace, run_id: str, stage: Path, folder: str) -> StageArchive:
    """Log the stage folder `stage` (`…/<kind>/<key>`) to a run under `folder`; what is there is not sent again."""
    kind, key = stage.parent.name, stage.name
    scratch = workspace.scratch("parcel")
    try:
        pack(stage, scratch / "tar")
        digest = file_sha256(scratch / "tar")
        tar = (scratch / "tar").rename(scratch / f"{kind}-{key[:12]}-{digest[:16]}.tar")
        uri = files.put(run_id, tar, folder)
        return StageArchive(uri=uri, sha256=digest, size_bytes=tar.stat().st_size, kind=kind, key=key)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def receive(files: RunFiles, workspace: Workspace, parcel: StageArchive, made: type[T]) -> T:
    """The value of a parcel's stage, from the workspace where it is there already, else fetched and checked.

    Raises:
        DigestMismatch, TornBundle: what came is not what was announced.
        NotFound, Interrupted: it could not be fetched.
    """
    found = workspace.find(parcel.kind, parcel.key, made)
    if found is not None:
        return found

    def fetch(into: Path) -> None:
        tar = into / ".parcel.tar"
        files.get(parcel.uri, parcel.sha256, parcel.size_bytes, tar)
        unpack(tar, into)
        tar.unlink()

    return workspace.adopt(parcel.kind, parcel.key, made, fetch)


def pack(folder: Path, tar: Path) -> None:
    """Write the files under `folder` as an uncompressed tar: the same files, the same bytes.

    Engines and weights do not compress; names, sizes and contents are all that a stage is.
    """
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(member, content)


def unpack(tar: Path, into: Path) -> None:
    """Unpack plain files under `into`.

    Raises:
        TornBundle: it is no tar, or holds a link, a device, a sparse file or a path that leads out of `into`.
    """
    try:
        with tarfile.open(tar, "r:") as archive:
            archive.extractall(into, filter=_plain)  # noqa: S202  # each member is checked
    except (tarfile.TarError, ValueError) as error:
        raise TornBundle(f"{tar} cannot be unpacked: {error}; do not trust who sent it") from error


def _plain(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo:
    # A sparse file may be larger than the tar that it is in, whose size is what was checked.
    if not member.isreg() or member.issparse():
        raise TornBundle(f"{member.name!r} in a parcel is no plain file: do not trust who sent it")
    return tarfile.data_filter(member, into)
