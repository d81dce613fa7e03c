"""Bundle files behind an HTTP server, read by byte ranges; independent of MLflow."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property

import requests
from urllib3.exceptions import HTTPError

from registry.errors import EngineryError, Interrupted, NotFound, TornBundle, first_line
from registry.mlflow.files.folder import CHUNK_BYTES

# A download goes on as long as so many bytes arrive in so many seconds.
PACE_SECONDS, PACE_BYTES = 120.0, 64 * 2**10
# Sends one GET for a path with the headers given.
SendGet = Callable[[str, Mapping[str, str]], requests.Response]
# Some servers put a whole page into an error's first line.
_LONGEST_REASON = 300


class _Pace:
    """Ends a download of which almost nothing arrives: a server that sends a byte now and then never times out."""

    def __init__(self, what: str) -> None:
        self._what, self._bytes, self._since = what, 0, time.monotonic()

    def count(self, size: int) -> None:
        """Count bytes that arrived.

        Raises:
            Interrupted: too few did in the last PACE_SECONDS.
        """
        self._bytes += size
        if (now := time.monotonic()) - self._since < PACE_SECONDS:
            return
        if self._bytes < PACE_BYTES:
            raise Interrupted(f"{self._what}: {self._bytes} bytes in {PACE_SECONDS:g} s; check the server, fetch again")
        self._bytes, self._since = 0, now


class HttpFiles:
    """`BundleFiles` over HTTP.

    `probe` names a small file that shows whether ranges of one file fit together; None where they surely do.
    """

    def __init__(self, name: str, send_get: SendGet, probe: str | None) -> None:
        self._name, self._send_get, self._probe = name, send_get, probe

    @cached_property
    def ranged(self) -> bool:
        """Whether parts of one file fit together: they carry the same strong validator (RFC 9110, 15.3.7.3).

        A server that first copies the file from elsewhere answers each request with a new validator; there a range
        would cost it the whole file.
        """
        if self._probe is None:
            return True
        validators = []
        for _ in range(2):
            with (
                translate_request_errors(f"{self._name}/{self._probe}"),
                closing(self._get(self._probe, "bytes=0-0")) as answer,
            ):
                validators.append(
                    answer.headers.get("ETag", "") if answer.status_code == requests.codes.partial else ""
                )
        return validators[0] == validators[1] and validators[0].startswith('"')

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        """See `BundleFiles.read`."""
        requested = f"bytes={start}-{stop - 1}" if stop is not None and self.ranged else None
        with translate_request_errors(f"{self._name}/{path}"), closing(self._get(path, requested)) as answer:
            sent = answer.headers.get("Content-Range", "")
            if requested and not sent.startswith(requested.replace("=", " ") + "/"):
                raise TornBundle(
                    f"{self._name}/{path}: the server sent {sent or 'no range'} instead of {requested}: do not trust it"
                )
            # What has arrived, and as it came: a few compressed bytes could fill the memory.
            pace = _Pace(f"{self._name}/{path}")
            while chunk := answer.raw.read1(CHUNK_BYTES, decode_content=False):
                pace.count(len(chunk))
                yield chunk

    def _get(self, path: str, byte_range: str | None) -> requests.Response:
        # Compressed bytes would have other positions and another length.
        headers = {"Accept-Encoding": "identity"} | ({"Range": byte_range} if byte_range else {})
        answer = self._send_get(path, headers)
        if not answer.ok:
            answer.close()
        if answer.status_code == requests.codes.not_found:
            raise NotFound(f"{self._name}/{path} does not exist: publish the engine again")
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            raise TornBundle(f"{self._name}/{path} is shorter than the manifest says: publish the engine again")
        answer.raise_for_status()
        return answer


@contextmanager
def translate_request_errors(what: str) -> Iterator[None]:
    """Raise errors of requests as one sentence that begins with `what`.

    Raises:
        NotFound: the server answered 404.
        Interrupted: anything else.
    """
    try:
        yield
    except requests.RequestException as error:
        missing = error.response is not None and error.response.status_code == requests.codes.not_found
        raise unreadable(what, error, missing=missing) from error
    except HTTPError as error:  # of a body that is read without requests
        raise unreadable(what, error, missing=False) from error


def unreadable(what: str, error: Exception, *, missing: bool) -> EngineryError:
    """Return the error for a file that a server did not deliver."""
    kind = NotFound if missing else Interrupted
    return kind(f"{what} could not be read ({first_line(error)[:_LONGEST_REASON]}): check the server and fetch again")
