"""What a killed publish left in MLflow: found, downloaded, finished or set aside, as registry/repair.py decides."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from registry.bundle.manifest import MANIFEST_FILE, SIGNATURE_FILE, read_manifest, write_manifest
from registry.errors import BadInput, DigestMismatch, TornBundle
from registry.mlflow.errors import pages
from registry.mlflow.publish import KIND, OWNER, UPLOADING, Publications, copy_files, reached
from registry.mlflow.rows import COMPLETE, PIN, STATE
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
        with reached("unfinished publishing"):
            named = f"name = '{check_name(model, what='model')}' and " if model else ""
            found = self.publications.search(f"{named}tags.{STATE} = '{UPLOADING}'")
            # The lowest of a run's versions speaks for the run: the others repeat it.
            newest_first = sorted(found, key=lambda version: -int(version.version))
            versions = {(version.name, version.run_id): _of_version(version) for version in newest_first}
            runs = [
                self._of_run(run, experiment.name)
                for experiment in self._experiments(model)
                for run in self._open_runs(experiment.experiment_id)
            ]
        return (*versions.values(), *(left for left in runs if (left.model, left.run_id) not in versions))

    def download_unfinished(self, left: Unfinished, into: Path) -> EngineManifest:
        """See `Repairable.download_unfinished`."""
        with reached(f"{left.model} run {left.run_id}"):
            files = self.publications.files(left.source)
            names = set(_listing(files))
            for needed in (MANIFEST_FILE, SIGNATURE_FILE):
                if needed not in names:
                    raise TornBundle(f"{needed} was never uploaded")
            copy_files(files, [MANIFEST_FILE, SIGNATURE_FILE], into)
            _check_whole_json(into / SIGNATURE_FILE)
            raw = (into / MANIFEST_FILE).read_bytes()
            try:
                manifest = read_manifest(raw)
            except BadInput as error:
                raise TornBundle(str(error)) from error
            if left.pin not in (None, sha256(raw).hexdigest()):
                raise DigestMismatch(f"{MANIFEST_FILE} is not the one that the version was made with")
            listed = {record.path for record in manifest.files} | {MANIFEST_FILE, SIGNATURE_FILE}
            if names != listed:
                raise TornBundle(f"its files are not those listed: {', '.join(sorted(names ^ listed)[:5])}")
            copy_files(files, [record.path for record in manifest.files], into)
        return manifest

    def finish(self, left: Unfinished, manifest: EngineManifest) -> int:
        """See `Repairable.finish`."""
        row, pin = row_of(manifest, 0), sha256(write_manifest(manifest)).hexdigest()
        if row.model != left.model:
            raise DigestMismatch(f"its manifest is that of {row.model}: it was put there by hand")
        with reached(f"finish {left.model} run {left.run_id}"):
            published = self.publications.published(row)
            if published not in (None, left.version):
                raise TornBundle(f"the same engine of the same release is version {published} already")
            if left.version is None:
                number = self.publications.register(row, left.source, left.run_id, pin)
            else:
                number = self.publications.settle_number(row, pin)
        self.close(replace(left, version=number))
        return number

    def close(self, left: Unfinished) -> None:
        """See `Repairable.close`."""
        with reached(f"end {left.model} run {left.run_id}"):
            self._end_run(left.run_id, "FINISHED", version=str(left.version))

    def tear(self, left: Unfinished, reason: str) -> None:
        """See `Repairable.tear`."""
        with reached(f"mark {left.model} run {left.run_id}"):
            if left.version is not None:
                self.publications.mark_torn(left.model, left.version, reason)
            self._end_run(left.run_id, "KILLED", torn=reason[:5000])

    def _of_run(self, run: Any, model: str) -> Unfinished:
        left = Unfinished(
            model=model,
            run_id=run.info.run_id,
            version=None,
            complete=False,
            source=f"{run.info.artifact_uri}/bundle",
            since_seconds=run.info.start_time / 1000,
            owner=run.data.tags.get(OWNER),
            pin=None,
        )
        found = self.publications.search(f"run_id = '{left.run_id}'")
        done = [int(version.version) for version in found if version.tags.get(STATE) == COMPLETE]
        return replace(left, version=done[0], complete=True) if done else left

    def _experiments(self, model: str | None) -> list[Any]:
        client = self.publications.client
        if model is None:
            return list(pages(lambda token: client.search_experiments(page_token=token)))
        found = client.get_experiment_by_name(model)
        return [found] if found is not None else []

    def _open_runs(self, experiment: str) -> list[Any]:
        client, query = self.publications.client, f"attributes.status = 'RUNNING' and tags.`{KIND}` = 'engine'"
        found = pages(lambda token: client.search_runs([experiment], query, max_results=_PAGE, page_token=token))
        return list(found)

    def _end_run(self, run_id: str, status: str, **tags: str) -> None:
        client = self.publications.client
        if client.get_run(run_id).info.lifecycle_stage == "deleted":
            if status != "FINISHED":
                return
            # `mlflow gc` removes the files of deleted runs, and these are a published version's files.
            client.restore_run(run_id)
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        client.set_terminated(run_id, status)


def _of_version(found: Any) -> Unfinished:
    return Unfinished(
        model=found.name,
        run_id=found.run_id,
        version=int(found.version),
        complete=False,
        source=found.source,
        since_seconds=found.creation_timestamp / 1000,
        owner=found.tags.get(OWNER),
        pin=found.tags.get(PIN, ""),
    )


def _check_whole_json(path: Path) -> None:
    # A signature that does not verify may be another key's; one that was cut short is nobody's.
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TornBundle(f"{path.name} was cut short") from error


def _listing(files: Any, folder: str | None = None) -> Iterator[str]:
    for item in files.list_artifacts(folder):
        if item.is_dir:
            yield from _listing(files, item.path)
        else:
            yield item.path
