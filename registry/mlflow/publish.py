"""How a bundle becomes a version in MLflow; what a crash in between leaves behind is for registry/mlflow/unfinished.py.

blobs → read back and hash → manifest and signature → version (`uploading`) → `complete`. A request may be sent twice:
MLflow's client repeats a POST after a 5xx, also when the first one was carried out. So who was first is decided
afterwards, by the sequence number: of the versions that carry one, the lowest version number counts.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.tracking import MlflowClient

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, write_manifest
from registry.digest import record_file, verify_tree
from registry.errors import BadInput, EngineryError
from registry.host.process import this_process
from registry.mlflow.errors import existing_is_fine, pages, plainly, quotable, refusal
from registry.mlflow.rows import COMPLETE, PIN, STATE
from registry.mlflow.uploads import upload
from registry.names import check_name
from registry.records import EngineManifest, EngineVersion, FileRecord
from registry.store import row_of

OWNER, KIND, SEQUENCE = "enginery.owner", "enginery.kind", "enginery.sequence"
UPLOADING, TORN = "uploading", "torn"
_PAGE = 1000
# Columns of the row that MLflow has itself, or that would go stale in a tag.
_NOT_TAGS = ("model", "version", "aliases", "complete")
# Deep enough for a version whose number came late; a model's counter is what counts.
_RECENT = 20


@dataclass(frozen=True)
class Publications:
    """Publishing through `client`; the rest is where the registry keeps files, runs and locks."""

    client: MlflowClient
    files: Callable[[str], Any]
    experiment: Callable[[str], str]
    scratch: Callable[[], AbstractContextManager[Path]]
    lock: Callable[[str], AbstractContextManager[object]]

    def publish(self, manifest: EngineManifest, directory: Path, run_id: str | None) -> int:
        """The version's number; see `Store.publish`."""
        raw = write_manifest(manifest)
        row, pin = row_of(manifest, 0), sha256(raw).hexdigest()
        verify_tree(directory, (*manifest.files, *_seal(directory, raw)))
        with reached(f"publish {manifest.model}"):
            if (published := self.published(row)) is not None:
                return published
            if any(version.tags.get(PIN) == pin for version in self._of_sequence(row)):
                # A version is made after its files were read back: only the answer got lost, or the last step.
                return self.settle_number(row, pin)
            if run_id and self.search(f"run_id = '{quotable(run_id)}'"):
                # Its files are a published version's files: writing there would change that version.
                raise BadInput(f"run {run_id} already holds a published engine: publish from a run of its own")
            run = self.client.get_run(run_id) if run_id else self._make_run(manifest)
            if run_id:
                self.client.set_tag(run_id, OWNER, this_process())
            source = f"{run.info.artifact_uri}/bundle"
            self._upload(manifest, directory, raw, source)
            number = self.register(row, source, run.info.run_id, pin)
            if run_id is None:
                self.client.set_terminated(run.info.run_id)
            return number

    def take_sequence(self, model: str) -> int:
        """See `Store.take_sequence`. A number that its taker never used is a gap."""
        name = check_name(model, what="model")
        with self.lock(name), reached(f"sequence of {name}"):
            # On the experiment: a tag of the registered model costs reading every version of it.
            experiment = self.experiment(name)
            counter = self.client.get_experiment(experiment).tags.get(SEQUENCE)
            recent = self.client.search_model_versions(f"name = '{name}'", _RECENT, order_by=["version_number DESC"])
            # The versions too: a tag is edited more easily than all of them.
            given = [_count(name, text) for text in (counter, *(version.tags.get("sequence") for version in recent))]
            taken = 1 + max(given)
            self.client.set_experiment_tag(experiment, SEQUENCE, str(taken))
            return taken

    def published(self, row: EngineVersion) -> int | None:
        """The complete version of the same engine, target and release. A key finds few, whatever the model has."""
        query = f"name = '{row.model}' and tags.build_key = '{row.build_key}'"
        same = {"digest": row.digest, "release": row.release, "target": row.target, STATE: COMPLETE}
        found = [int(v.version) for v in self.search(query) if {name: v.tags.get(name) for name in same} == same]
        return min(found, default=None)

    def _of_sequence(self, row: EngineVersion) -> list[Any]:
        found = self.search(f"name = '{row.model}' and tags.sequence = '{row.sequence}'")
        return sorted((v for v in found if v.tags.get(STATE) != TORN), key=lambda v: int(v.version))

    def _upload(self, manifest: EngineManifest, directory: Path, raw: bytes, source: str) -> None:
        blobs = self.files(source)
        for record in manifest.files:
            folder = PurePosixPath(record.path).parent.as_posix()
            upload(blobs, directory / record.path, None if folder == "." else folder)
        self._read_back(blobs, manifest.files)
        with self.scratch() as scratch:
            (scratch / MANIFEST_FILE).write_bytes(raw)
            seal = [FileRecord(MANIFEST_FILE, sha256(raw).hexdigest(), len(raw))]
            upload(blobs, scratch / MANIFEST_FILE)
        if (directory / SIGNATURE_FILE).is_file():
            seal.append(record_file(directory / SIGNATURE_FILE, root=directory))
            upload(blobs, directory / SIGNATURE_FILE)
        self._read_back(blobs, seal)

    def _read_back(self, blobs: Any, records: tuple[FileRecord, ...] | list[FileRecord]) -> None:
        with self.scratch() as scratch:
            copy_files(blobs, [record.path for record in records], scratch)
            verify_tree(scratch, records)

    def register(self, row: EngineVersion, source: str, run_id: str, pin: str) -> int:
        """Make a version of what was read back, and complete it; its number."""
        # Not simply made again: MLflow answers that it exists after reading every version of it.
        if not self.client.search_registered_models(f"name = '{row.model}'", max_results=1):
            with existing_is_fine():
                self.client.create_registered_model(row.model)
        columns = {name: value for name, value in asdict(row).items() if name not in _NOT_TAGS and value is not None}
        tags = {name: json.dumps(value) if name == "metrics" else str(value) for name, value in columns.items()}
        state = {PIN: pin, STATE: UPLOADING, OWNER: this_process()}
        self.client.create_model_version(row.model, source, run_id=run_id, tags={**tags, **state})
        return self.settle_number(row, pin)

    def settle_number(self, row: EngineVersion, pin: str) -> int:
        """Complete the first version that carries the row's sequence number, and mark ours that came after it.

        Raises:
            EngineryError: the number went to another engine.
        """
        alive = self._of_sequence(row)
        for version in alive[1:]:
            if version.tags.get(PIN) == pin:
                self.mark_torn(row.model, int(version.version), f"repeats version {alive[0].version}")
        if not alive or alive[0].tags.get(PIN) != pin:
            taken = f"went to version {alive[0].version}" if alive else "was set aside as torn"
            raise EngineryError(
                f"sequence {row.sequence} of {row.model} {taken} at the same time: publish the engine again, with a "
                "number of its own"
            )
        first = alive[0]
        # Last: what a killed publish leaves behind has no `complete`, and nothing here shows it.
        self._tag(row.model, first.version, STATE, COMPLETE)
        return int(first.version)

    def mark_torn(self, model: str, version: int, reason: str) -> None:
        """Set a version aside for good, with the reason on its page."""
        self._tag(model, str(version), "torn", reason[:5000])
        self._tag(model, str(version), STATE, TORN)

    def _tag(self, model: str, version: str, name: str, value: str) -> None:
        # Past the public client, which first reads every version of the model to see whether it is a prompt.
        registry: Any = self.client._get_registry_client()  # type: ignore[no-untyped-call]  # noqa: SLF001
        registry.set_model_version_tag(model, version, name, value)

    def _make_run(self, manifest: EngineManifest) -> Any:
        name = f"{manifest.build.target.name}-{manifest.build.precision}"
        tags = {
            KIND: "engine",
            OWNER: this_process(),
            "release": manifest.release,
            "verdict": str(manifest.verdict),
            "reason": manifest.reason[:5000],
        }
        return self.client.create_run(self.experiment(manifest.model), tags=tags, run_name=name)

    def search(self, query: str) -> list[Any]:
        """MLflow's versions by query, all pages."""
        return list(pages(lambda token: self.client.search_model_versions(query, _PAGE, page_token=token)))


def copy_files(files: Any, paths: list[str], into: Path) -> None:
    """Download `paths` of an artifact repository into the folder `into`, under the same names."""
    for path in paths:
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        files.download_artifacts(path, str(into))


def _seal(directory: Path, raw: bytes) -> Iterator[FileRecord]:
    if (directory / MANIFEST_FILE).is_file():
        yield FileRecord(MANIFEST_FILE, sha256(raw).hexdigest(), len(raw))
    if (directory / SIGNATURE_FILE).is_file():
        yield record_file(directory / SIGNATURE_FILE, root=directory)


def _count(model: str, text: str | None) -> int:
    if not (text or "0").isdecimal():
        raise BadInput(f"{model} has a sequence {text!r} in MLflow, which is no number: someone edited a tag; mend it")
    return int(text or 0)


@contextmanager
def reached(what: str) -> Iterator[None]:
    """MLflow's and the artifact store's errors, in one sentence that begins with `what`."""
    try:
        with plainly(what):
            yield
    except OSError as error:
        # Artifact stores raise requests' exceptions, which are OSErrors, and those of the local disk.
        if turned_down := refusal(error):
            raise EngineryError(f"{what}: {turned_down}") from error
        sentence = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineryError(
            f"{what}: {sentence}; what was uploaded is not visible: check the registry and the disk, and run it again"
        ) from error
