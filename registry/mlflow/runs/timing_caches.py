"""TensorRT's timing caches in MLflow: one run per cache, in an experiment of their own, found by key."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from registry.errors import DigestMismatch, EngineryError
from registry.mlflow.errors import check_id, read_pages, translate_errors
from registry.mlflow.files.artifacts import open_files, upload_to_run
from registry.mlflow.rows import LONGEST
from registry.mlflow.store import MlflowStore

# Not a model's name: those have no '/'.
EXPERIMENT = "enginery/timing-caches"
FILE = "timing.cache"
# A large network's cache has some megabytes; a larger file is a mistake, or an attack.
LARGEST_BYTES = 64 * 2**20
_KIND, _KEY, _SHA256, _SIZE = "enginery.kind", "enginery.timing_key", "enginery.sha256", "enginery.size_bytes"
# Hosts that built at the same time left one each; the next build combines them into one.
_MOST = 8


@dataclass(frozen=True)
class KeptCache:
    """A serialized timing cache, verified against its sha256, and the run that stores it."""

    run_id: str
    content: bytes


class TimingCaches:
    """The caches of a registry, by key; `largest_bytes` is the size of the largest that is read or written."""

    def __init__(self, store: MlflowStore, *, largest_bytes: int = LARGEST_BYTES) -> None:
        self._client = store.client
        self._experiment = partial(store.named_experiment, EXPERIMENT)
        self._find_experiment = partial(store.find_experiment, EXPERIMENT)
        self.largest_bytes = largest_bytes

    def read(self, key: str, say: Callable[[str], None]) -> tuple[KeptCache, ...]:
        """Return the caches under `key`, newest first; report and throw away one whose bytes changed.

        Raises:
            EngineryError: MLflow does not answer.
        """
        caches = []
        for run in self._find_runs(key):
            try:
                caches.append(KeptCache(str(run.info.run_id), self._read_content(run)))
            except DigestMismatch as error:
                say(f"{error}; it is thrown away")
                self.discard(str(run.info.run_id), str(error))
            except EngineryError as error:
                say(f"a timing cache is left unread: {error}")
        return tuple(caches)

    def write(self, key: str, content: bytes, replaces: Sequence[str] = ()) -> None:
        """Store a cache, visible only once it is whole, and delete the runs whose entries it includes.

        Raises:
            EngineryError: it is too large, or MLflow or its store refuses.
        """
        if len(content) > self.largest_bytes:
            raise EngineryError(
                f"a timing cache of {len(content)} bytes was not stored: at most {self.largest_bytes} are allowed"
            )
        tags = {
            _KIND: "timing-cache",
            _KEY: check_id(key),
            _SHA256: hashlib.sha256(content).hexdigest(),
            _SIZE: str(len(content)),
        }
        with translate_errors("timing cache"), tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / FILE).write_bytes(content)
            run = self._client.create_run(self._experiment(), run_name=f"timing-{key[:12]}", tags=tags)
            upload_to_run(self._client, run.info.run_id, Path(scratch) / FILE)
            self._client.set_terminated(run.info.run_id)
            for run_id in replaces:
                self._client.delete_run(run_id)

    def discard(self, run_id: str, reason: str) -> None:
        """Delete a cache's run, with the reason on its page.

        Raises:
            EngineryError: MLflow refuses.
        """
        with translate_errors("timing cache"):
            self._client.set_tag(run_id, "reason", reason[:LONGEST])
            self._client.delete_run(run_id)

    def _find_runs(self, key: str) -> list[Any]:
        query = f"tags.`{_KEY}` = '{check_id(key)}' and attributes.status = 'FINISHED'"
        newest_first = ["attributes.start_time DESC"]
        if (experiment := self._find_experiment()) is None:
            return []
        with translate_errors("timing caches"):
            runs = read_pages(
                lambda token: self._client.search_runs(
                    [experiment], query, max_results=_MOST, order_by=newest_first, page_token=token
                )
            )
            return list(islice(runs, _MOST))

    def _read_content(self, run: Any) -> bytes:
        files = open_files(run.info.artifact_uri, self._client.tracking_uri, probe=FILE)
        content = b""
        for chunk in files.read(FILE):
            content += chunk
            if len(content) > self.largest_bytes:
                break  # whatever it is, its size is not what was written
        actual = (hashlib.sha256(content).hexdigest(), str(len(content)))
        if actual != (run.data.tags.get(_SHA256), run.data.tags.get(_SIZE)):
            raise DigestMismatch(f"the timing cache of run {run.info.run_id} is not what was written there")
        return content
