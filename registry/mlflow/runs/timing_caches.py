"""TensorRT's timing caches in MLflow: a run each, in an experiment of their own, found by what they are good for."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from registry.errors import DigestMismatch, EngineryError
from registry.mlflow.artifacts import open_source
from registry.mlflow.errors import pages, plainly, quotable
from registry.mlflow.store import MlflowStore
from registry.mlflow.uploads import upload_to_run

# No model has this name: a model's has no '/'.
EXPERIMENT = "enginery/timing-caches"
FILE = "timing.cache"
# A large network's cache has some megabytes; what is larger is a mistake, or an attack.
LARGEST_BYTES = 64 * 2**20
_KIND, _KEY, _SHA256, _SIZE = "enginery.kind", "enginery.timing_key", "enginery.sha256", "enginery.size_bytes"
# Hosts that built side by side left one each; the next build combines them into one.
_MOST = 8


@dataclass(frozen=True)
class KeptCache:
    """A serialized timing cache, whose bytes are those that were written, and the run that it lies in."""

    run_id: str
    content: bytes


class TimingCaches:
    """The caches of a registry, by key, in an experiment of their own."""

    def __init__(self, store: MlflowStore) -> None:
        self._client = store.client
        self._experiment = partial(store.named_experiment, EXPERIMENT)

    def read(self, key: str, say: Callable[[str], None]) -> tuple[KeptCache, ...]:
        """The caches kept under `key`, newest first; one whose bytes changed is thrown away, and said.

        Raises:
            EngineryError: MLflow does not answer.
        """
        kept = []
        for run in self._runs(key):
            try:
                kept.append(KeptCache(str(run.info.run_id), self._content(run)))
            except DigestMismatch as error:
                say(f"{error}; it is thrown away")
                self.discard(str(run.info.run_id), str(error))
            except EngineryError as error:
                say(f"a timing cache is left unread: {error}")
        return tuple(kept)

    def write(self, key: str, content: bytes, replaces: Sequence[str] = ()) -> None:
        """Keep a cache, and drop the runs that it holds all entries of; it is found only once it is whole.

        Raises:
            EngineryError: it is too large, or MLflow or its store refuses.
        """
        if len(content) > LARGEST_BYTES:
            raise EngineryError(f"a timing cache of {len(content)} bytes is not kept: at most {LARGEST_BYTES} are")
        tags = {
            _KIND: "timing-cache",
            _KEY: quotable(key),
            _SHA256: hashlib.sha256(content).hexdigest(),
            _SIZE: str(len(content)),
        }
        with plainly("timing cache"), tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / FILE).write_bytes(content)
            run = self._client.create_run(self._experiment(), run_name=f"timing-{key[:12]}", tags=tags)
            upload_to_run(self._client, run.info.run_id, Path(scratch) / FILE)
            self._client.set_terminated(run.info.run_id)
            for run_id in replaces:
                self._client.delete_run(run_id)

    def discard(self, run_id: str, reason: str) -> None:
        """Nobody finds this cache any more; its run says why.

        Raises:
            EngineryError: MLflow refuses.
        """
        with plainly("timing cache"):
            self._client.set_tag(run_id, "reason", reason[:5000])
            self._client.delete_run(run_id)

    def _runs(self, key: str) -> list[Any]:
        query = f"tags.`{_KEY}` = '{quotable(key)}' and attributes.status = 'FINISHED'"
        newest = ["attributes.start_time DESC"]
        with plainly("timing caches"):
            experiment = [self._experiment()]
            found = pages(
                lambda token: self._client.search_runs(
                    experiment, query, max_results=_MOST, order_by=newest, page_token=token
                )
            )
            return list(islice(found, _MOST))

    def _content(self, run: Any) -> bytes:
        source = open_source(run.info.artifact_uri, self._client.tracking_uri, probe=FILE)
        content = b""
        for chunk in source.read(FILE):
            content += chunk
            if len(content) > LARGEST_BYTES:
                break  # whatever it is, its size is not what was written
        found = hashlib.sha256(content).hexdigest()
        if (found, str(len(content))) != (run.data.tags.get(_SHA256), run.data.tags.get(_SIZE)):
            raise DigestMismatch(f"the timing cache of run {run.info.run_id} is not what was written there")
        return content
