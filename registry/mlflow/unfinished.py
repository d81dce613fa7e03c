"""Find, download, finish or mark torn what a killed publish left in MLflow, as registry/repair.py decides."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, read_manifest
from registry.errors import BadInput, DigestMismatch, TornBundle
from registry.mlflow.errors import read_pages
from registry.mlflow.publish import KIND, OWNER, UPLOADING, VERSION, Publications, copy_files, translate_publish_errors
from registry.mlflow.rows import COMPLETE, LONGEST, PIN, PUBLISHER, STATE, read_record
from registry.names import check_name
from registry.records import EngineManifest
from registry.store import Unfinished, row_of

_PAGE = 1000


@dataclass(frozen=True)
class Repairs:
    """`registry.store.Repairable` over MLflow."""

    publications: Publications

    def unfinished(self, model: str | None = None) -> tuple[Unfinished, ...]:
        """See `Repairable.unfinished`."""
        with translate_publish_errors("unfinished publishing"):
            named = f"name = '{check_name(model, what='model')}' and " if model else ""
            uploading = self.publications.search_versions(f"{named}tags.`{STATE}` = '{UPLOADING}'")
            # The lowest of a run's versions represents the run: the others repeat it.
            newest_first = sorted(uploading, key=lambda version: -int(version.version))
            versions = {(version.name, version.run_id): _from_version(version) for version in newest_first}
            runs = [
                self._from_run(run, experiment.name)
                for experiment in self._find_experiments(model)
                for run in self._find_open_runs(experiment.experiment_id)
            ]
        return (*versions.values(), *(run for run in runs if (run.model, run.run_id) not in versions))

    def download_unfinished(self, unfinished: Unfinished, into: Path) -> EngineManifest:
        """See `Repairable.download_unfinished`."""
        with translate_publish_errors(f"{unfinished.model} run {unfinished.run_id}"):
            repository = self.publications.open_repository(unfinished.uri)
            names = set(_list_files(repository))
            for needed in (MANIFEST_FILE, SIGNATURE_FILE):
                if needed not in names:
                    raise TornBundle(f"{needed} was never uploaded")
            copy_files(repository, [MANIFEST_FILE, SIGNATURE_FILE], into)
            _check_whole_json(into / SIGNATURE_FILE)
            raw = (into / MANIFEST_FILE).read_bytes()
            try:
                manifest = read_manifest(raw)
            except BadInput as error:
                raise TornBundle(str(error)) from error
            if unfinished.pin not in (None, sha256(raw).hexdigest()):
                raise DigestMismatch(f"{MANIFEST_FILE} is not the one that the version was created with")
            listed = {record.path for record in manifest.files} | {MANIFEST_FILE, SIGNATURE_FILE}
            if names != listed:
                raise TornBundle(f"its files differ from its manifest: {', '.join(sorted(names ^ listed)[:5])}")
            copy_files(repository, [record.path for record in manifest.files], into)
        return manifest

    def finish(self, unfinished: Unfinished, manifest: EngineManifest) -> int:
        """See `Repairable.finish`."""
        row = row_of(manifest, 0)
        if row.model != unfinished.model:
            raise DigestMismatch(f"its manifest is that of {row.model}: somebody put it there")
        with translate_publish_errors(f"finish {unfinished.model} run {unfinished.run_id}"):
            published = self.publications.find_published(row)
            if published not in (None, unfinished.version):
                raise TornBundle(f"the same engine of the same release is version {published} already")
            if unfinished.version is None:
                number = self.publications.register_version(manifest, unfinished.uri, unfinished.run_id)
            else:
                number = self.publications.complete_first(manifest)
        self.end_run(replace(unfinished, version=number))
        return number

    def end_run(self, unfinished: Unfinished) -> None:
        """See `Repairable.end_run`."""
        with translate_publish_errors(f"end {unfinished.model} run {unfinished.run_id}"):
            self._terminate_run(unfinished.run_id, "FINISHED", {VERSION: str(unfinished.version)})

    def mark_torn(self, unfinished: Unfinished, reason: str) -> None:
        """See `Repairable.mark_torn`."""
        with translate_publish_errors(f"mark {unfinished.model} run {unfinished.run_id}"):
            if unfinished.version is not None:
                self.publications.mark_torn(unfinished.model, unfinished.version, reason)
            self._terminate_run(unfinished.run_id, "KILLED", {"enginery.torn": reason[:LONGEST]})

    def _from_run(self, run: Any, model: str) -> Unfinished:
        unfinished = Unfinished(
            model=model,
            run_id=run.info.run_id,
            version=None,
            complete=False,
            uri=f"{run.info.artifact_uri}/bundle",
            since_seconds=run.info.start_time / 1000,
            owner=run.data.tags.get(OWNER),
            pin=None,
        )
        versions = self.publications.search_versions(f"run_id = '{unfinished.run_id}'")
        complete = [int(version.version) for version in versions if version.tags.get(STATE) == COMPLETE]
        return replace(unfinished, version=complete[0], complete=True) if complete else unfinished

    def _find_experiments(self, model: str | None) -> list[Any]:
        client = self.publications.client
        if model is None:
            return list(read_pages(lambda token: client.search_experiments(page_token=token)))
        experiment = client.get_experiment_by_name(model)
        return [experiment] if experiment is not None else []

    def _find_open_runs(self, experiment: str) -> list[Any]:
        client, query = self.publications.client, f"attributes.status = 'RUNNING' and tags.`{KIND}` = 'engine'"
        return list(
            read_pages(lambda token: client.search_runs([experiment], query, max_results=_PAGE, page_token=token))
        )

    def _terminate_run(self, run_id: str, status: str, tags: Mapping[str, str]) -> None:
        client = self.publications.client
        if client.get_run(run_id).info.lifecycle_stage == "deleted":
            if status != "FINISHED":
                return
            # `mlflow gc` removes the files of deleted runs, and these belong to a published version.
            client.restore_run(run_id)
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        client.set_terminated(run_id, status)


def _from_version(version: Any) -> Unfinished:
    return Unfinished(
        model=version.name,
        run_id=version.run_id,
        version=int(version.version),
        complete=False,
        uri=version.source,
        since_seconds=version.creation_timestamp / 1000,
        owner=read_record(version).get(PUBLISHER),
        pin=read_record(version).get(PIN, ""),
    )


def _check_whole_json(path: Path) -> None:
    # A signature that does not verify may be of another key; one that was cut short is of none.
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TornBundle(f"{path.name} was cut short") from error


def _list_files(repository: Any, folder: str | None = None) -> Iterator[str]:
    for item in repository.list_artifacts(folder):
        if item.is_dir:
            yield from _list_files(repository, item.path)
        else:
            yield item.path
