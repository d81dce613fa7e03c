"""Publish a bundle as a version in MLflow; registry/mlflow/unfinished.py handles what a crash leaves in between.

The steps: upload the files, read them back and hash them, upload manifest and signature, create the version
(`uploading`), mark it `complete`. A request may be carried out twice: MLflow's client repeats a POST after a 5xx, even
if the first one succeeded. So the winner is decided afterwards, by the sequence number: of the versions that have the
same one, the lowest version number counts.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from registry.bundle.description import describe_model, describe_version
from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, write_manifest
from registry.digest import record_file, verify_tree
from registry.errors import BadInput, EngineryError, first_line
from registry.host.process import this_process
from registry.mlflow.errors import check_id, explain_refusal, ignore_existing, read_pages, translate_errors
from registry.mlflow.files.artifacts import upload
from registry.mlflow.rows import (
    COMPLETE,
    LONGEST,
    PIN,
    PUBLISHER,
    STATE,
    VERSION_BUILD_KEY,
    VERSION_SEQUENCE,
    read_record,
    tags_of,
)
from registry.names import check_name
from registry.records import EngineManifest, EngineVersion, FileRecord
from registry.store import row_of

# Tags of runs, and of a model's experiment: the highest sequence number that was given.
OWNER, KIND, RELEASE, BUILD_KEY = "enginery.owner", "enginery.kind", "enginery.release", "enginery.build_key"
# The page for people that a release logs to its run.
REPORT_PAGE = "report.html"
VERSION, SEQUENCE = "enginery.version", "enginery.sequence"
UPLOADING, TORN = "uploading", "torn"
_PAGE = 1000
# How many of the newest versions are compared with the model's counter, in case its tag was edited.
_RECENT = 20


@dataclass(frozen=True)
class Publications:
    """Publishes through `client`; the other fields open its files, experiments, scratch folders and locks."""

    client: MlflowClient
    open_repository: Callable[[str], Any]
    experiment_of: Callable[[str], str]
    history_of: Callable[[str], str]
    open_scratch: Callable[[], AbstractContextManager[Path]]
    lock: Callable[[str], AbstractContextManager[object]]

    def publish(self, manifest: EngineManifest, directory: Path, run_id: str | None) -> int:
        """Publish a bundle and return its version number; see `Store.publish`."""
        raw = write_manifest(manifest)
        row, pin = row_of(manifest, 0), _pin(manifest)
        verify_tree(directory, (*manifest.files, *_record_seal(directory, raw)))
        with translate_publish_errors(f"publish {manifest.model}"):
            if (published := self.find_published(row)) is not None:
                return published
            if any(read_record(version).get(PIN) == pin for version in self._search_sequence(row)):
                # A version is created after its files were read back: only the answer or the last step is missing.
                return self.complete_first(manifest)
            if run_id and self.search_versions(f"run_id = '{check_id(run_id)}'"):
                # Its files belong to a published version: writing there would change that version.
                raise BadInput(f"run {run_id} already holds a published engine: publish from a run of its own")
            run = self.client.get_run(run_id) if run_id else self._create_run(manifest)
            if run_id:
                self.client.set_tag(run_id, OWNER, this_process())
            uri = f"{run.info.artifact_uri}/bundle"
            self._upload(manifest, directory, raw, uri)
            number = self.register_version(manifest, uri, run.info.run_id)
            if run_id is None:
                self.client.set_terminated(run.info.run_id)
            return number

    def take_sequence(self, model: str) -> int:
        """See `Store.take_sequence`. A number that is never used leaves a gap."""
        name = check_name(model, what="model")
        with self.lock(name), translate_publish_errors(f"sequence of {name}"):
            # On the experiment: a tag of the registered model costs reading every version of it.
            experiment = self.experiment_of(name)
            counter = self.client.get_experiment(experiment).tags.get(SEQUENCE)
            recent = self.client.search_model_versions(f"name = '{name}'", _RECENT, order_by=["version_number DESC"])
            # The versions too: one tag is edited more easily than all of them.
            texts = (counter, *(version.tags.get(VERSION_SEQUENCE) for version in recent))
            sequence = 1 + max(_parse_sequence(name, text) for text in texts)
            self.client.set_experiment_tag(experiment, SEQUENCE, str(sequence))
            return sequence

    def find_published(self, row: EngineVersion) -> int | None:
        """Return the complete version of the same engine, target, release and verdict, if there is one."""
        # A build key matches few versions, however many the model has.
        versions = self.search_versions(f"name = '{row.model}' and tags.`{VERSION_BUILD_KEY}` = '{row.build_key}'")
        # The verdict too: an engine whose measurement decided nothing is measured, and published, again.
        same = {"digest": row.digest, "release": row.release, "target": row.target, "verdict": row.verdict.value}
        same[STATE] = COMPLETE
        found = ((int(version.version), read_record(version) | version.tags) for version in versions)
        return min((number for number, tags in found if {name: tags.get(name) for name in same} == same), default=None)

    def _search_sequence(self, row: EngineVersion) -> list[Any]:
        versions = self.search_versions(f"name = '{row.model}' and tags.`{VERSION_SEQUENCE}` = '{row.sequence}'")
        return sorted((v for v in versions if v.tags.get(STATE) != TORN), key=lambda v: int(v.version))

    def _upload(self, manifest: EngineManifest, directory: Path, raw: bytes, uri: str) -> None:
        repository = self.open_repository(uri)
        for record in manifest.files:
            folder = PurePosixPath(record.path).parent.as_posix()
            upload(repository, directory / record.path, None if folder == "." else folder)
        self._read_back(repository, manifest.files)
        with self.open_scratch() as scratch:
            (scratch / MANIFEST_FILE).write_bytes(raw)
            seal = [FileRecord(MANIFEST_FILE, sha256(raw).hexdigest(), len(raw))]
            upload(repository, scratch / MANIFEST_FILE)
        if (directory / SIGNATURE_FILE).is_file():
            seal.append(record_file(directory / SIGNATURE_FILE, root=directory))
            upload(repository, directory / SIGNATURE_FILE)
        self._read_back(repository, seal)

    def _read_back(self, repository: Any, records: tuple[FileRecord, ...] | list[FileRecord]) -> None:
        with self.open_scratch() as scratch:
            copy_files(repository, [record.path for record in records], scratch)
            verify_tree(scratch, records)

    def register_version(self, manifest: EngineManifest, uri: str, run_id: str) -> int:
        """Create a version of the files at `uri`, mark it complete and return its number."""
        row, model = row_of(manifest, 0), manifest.model
        # Not simply created: if the model exists, MLflow reads every version of it before it says so.
        if not self.client.search_registered_models(f"name = '{model}'", max_results=1):
            with ignore_existing():
                self.client.create_registered_model(model, description=describe_model(model, manifest.source))
            # MLflow's basic auth gives both to the user who creates them: whoever moves aliases can write history too.
            self.history_of(model)
        tags = tags_of(row, **{PIN: _pin(manifest), PUBLISHER: this_process()}) | {STATE: UPLOADING}
        self.client.create_model_version(model, uri, run_id=run_id, tags=tags)
        return self.complete_first(manifest)

    def complete_first(self, manifest: EngineManifest) -> int:
        """Mark the first version with the manifest's sequence number complete, and later ones of its bundle torn.

        Raises:
            EngineryError: the number went to another engine.
        """
        row, pin = row_of(manifest, 0), _pin(manifest)
        candidates = self._search_sequence(row)
        for version in candidates[1:]:
            if read_record(version).get(PIN) == pin:
                self.mark_torn(row.model, int(version.version), f"repeats version {candidates[0].version}")
        if not candidates or read_record(candidates[0]).get(PIN) != pin:
            fate = f"was given to version {candidates[0].version}" if candidates else "was marked torn"
            raise EngineryError(
                f"sequence {row.sequence} of {row.model} {fate} at the same time: publish the engine again, with a "
                "new sequence number"
            )
        number = int(candidates[0].version)
        # Not through the public client, as in `_set_tag`.
        registry: Any = self.client._get_registry_client()  # type: ignore[no-untyped-call]  # noqa: SLF001
        words = describe_version(manifest, number, self._list_pages(candidates[0].run_id))
        registry.update_model_version(row.model, str(number), description=words)
        # The last step: what a killed publish leaves behind is not `complete`, and therefore invisible.
        self._set_tag(row.model, str(number), STATE, COMPLETE)
        return number

    def _list_pages(self, run_id: str | None) -> dict[str, str]:
        """Return MLflow's pages about a version's engine: its run, and the report that its release logs last."""
        if not run_id:
            return {}
        run = self.client.get_run(run_id)
        runs = f"#/experiments/{run.info.experiment_id}/runs"
        release = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
        report = {"the report of its release": f"{runs}/{release}/artifacts/{REPORT_PAGE}"} if release else {}
        return {"its run": f"{runs}/{run_id}"} | report

    def mark_torn(self, model: str, version: int, reason: str) -> None:
        """Set a version aside for good, with the reason on its page."""
        self._set_tag(model, str(version), "version.torn", reason[:LONGEST])
        self._set_tag(model, str(version), STATE, TORN)

    def _set_tag(self, model: str, version: str, name: str, value: str) -> None:
        # Not through the public client, which first reads every version of the model to see whether it is a prompt.
        registry: Any = self.client._get_registry_client()  # type: ignore[no-untyped-call]  # noqa: SLF001
        registry.set_model_version_tag(model, version, name, value)

    def _create_run(self, manifest: EngineManifest) -> Any:
        name = f"{manifest.build.target.name}-{manifest.build.precision}"
        tags = {
            KIND: "engine",
            OWNER: this_process(),
            RELEASE: manifest.release,
            MLFLOW_RUN_NOTE: f"{manifest.verdict}: {manifest.reason}",
        }
        return self.client.create_run(self.experiment_of(manifest.model), tags=tags, run_name=name)

    def search_versions(self, query: str) -> list[Any]:
        """Return all of MLflow's versions that match a query."""
        return list(read_pages(lambda token: self.client.search_model_versions(query, _PAGE, page_token=token)))


def copy_files(repository: Any, paths: list[str], into: Path) -> None:
    """Download `paths` of an artifact repository into the folder `into`, under the same names."""
    for path in paths:
        (into / path).parent.mkdir(parents=True, exist_ok=True)
        repository.download_artifacts(path, str(into))


def _pin(manifest: EngineManifest) -> str:
    return sha256(write_manifest(manifest)).hexdigest()


def _record_seal(directory: Path, raw: bytes) -> Iterator[FileRecord]:
    if (directory / MANIFEST_FILE).is_file():
        yield FileRecord(MANIFEST_FILE, sha256(raw).hexdigest(), len(raw))
    if (directory / SIGNATURE_FILE).is_file():
        yield record_file(directory / SIGNATURE_FILE, root=directory)


def _parse_sequence(model: str, text: str | None) -> int:
    if not (text or "0").isdecimal():
        raise BadInput(
            f"{model} has the sequence {text!r} in MLflow, which is not a number: someone edited a tag; correct it"
        )
    return int(text or 0)


@contextmanager
def translate_publish_errors(what: str) -> Iterator[None]:
    """Raise errors of MLflow and its artifact store as one sentence that begins with `what`.

    Raises:
        EngineryError: the registry or a disk failed.
    """
    try:
        with translate_errors(what):
            yield
    except OSError as error:
        # Artifact stores raise requests' exceptions, which are OSErrors, and those of the local disk.
        if advice := explain_refusal(error):
            raise EngineryError(f"{what}: {advice}") from error
        raise EngineryError(
            f"{what}: {first_line(error)}; what was uploaded is not visible: check the registry and the disk, and run "
            "it again"
        ) from error
