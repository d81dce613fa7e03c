"""Send finished stages from host to host through MLflow's artifact store: one tar each, verified on arrival."""

import shutil
import tarfile
from dataclasses import dataclass
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
    """Where one finished stage (`kind`, `key`) is stored as a tar, with the tar's sha256 and size in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: Annotated[str, Field(min_length=1, max_length=4096)]
    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]
    kind: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,40}$")]
    key: Sha256


@dataclass(frozen=True)
class StageTransfer:
    """The two ends of a transfer: the files of MLflow's runs, and this host's workspace."""

    files: RunFiles
    workspace: Workspace

    def send(self, run_id: str, stage: Path, folder: str) -> StageArchive:
        """Log the stage folder `stage` (`…/<kind>/<key>`) to a run under `folder`, unless it is there already."""
        kind, key = stage.parent.name, stage.name
        scratch = self.workspace.scratch("archive")
        try:
            pack_stage(stage, scratch / "tar")
            digest = file_sha256(scratch / "tar")
            tar = (scratch / "tar").rename(scratch / f"{kind}-{key[:12]}-{digest[:16]}.tar")
            uri = self.files.put(run_id, tar, folder)
            return StageArchive(uri=uri, sha256=digest, size_bytes=tar.stat().st_size, kind=kind, key=key)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def receive(self, archive: StageArchive, result_type: type[T]) -> T:
        """Return the result of an archived stage, from the workspace if it is there, else fetched and verified.

        Raises:
            DigestMismatch, TornBundle: what came is not what was announced.
            NotFound, Interrupted: it could not be fetched.
        """
        result = self.workspace.find(archive.kind, archive.key, result_type)
        if result is not None:
            return result

        def fetch(into: Path) -> None:
            tar = into / ".archive.tar"
            self.files.get(archive.uri, archive.sha256, archive.size_bytes, tar)
            unpack_stage(tar, into)
            tar.unlink()

        return self.workspace.adopt(archive.kind, archive.key, result_type, fetch)


def pack_stage(folder: Path, tar: Path) -> None:
    """Write the files under `folder` as an uncompressed tar: the same files give the same bytes.

    Engines and weights do not compress; names, sizes and contents are all that a stage consists of.
    """
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(member, content)


def unpack_stage(tar: Path, into: Path) -> None:
    """Unpack plain files under `into`.

    Raises:
        TornBundle: it is not a tar, or holds a link, a device, a sparse file or a path that leads out of `into`.
    """
    try:
        with tarfile.open(tar, "r:") as archive:
            archive.extractall(into, filter=_accept_plain_file)  # noqa: S202  # each member is checked
    except (tarfile.TarError, ValueError) as error:
        raise TornBundle(f"{tar} cannot be unpacked: {error}; do not trust the host that sent it") from error


def _accept_plain_file(member: tarfile.TarInfo, into: str) -> tarfile.TarInfo:
    # A sparse file may be larger than the tar that it is in, whose size is what was checked.
    if not member.isreg() or member.issparse():
        raise TornBundle(f"{member.name!r} in a stage archive is not a plain file: do not trust the host that sent it")
    return tarfile.data_filter(member, into)
