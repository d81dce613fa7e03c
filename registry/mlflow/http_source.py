"""Files behind an HTTP server, as a `BundleFiles` of byte ranges; knows nothing of MLflow."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property

import requests

from registry.errors import EngineryError, Interrupted, NotFound, TornBundle

CHUNK_BYTES = 2**20
Ask = Callable[[str, Mapping[str, str]], requests.Response]


class HttpSource:
    """Files behind `ask`, which sends one GET for a path with the headers given.

    `probe` names a small file by which it is found out whether ranges can be put together; None where they can.
    """

    def __init__(self, name: str, ask: Ask, probe: str | None) -> None:
        self._name, self._ask, self._probe = name, ask, probe

    @cached_property
    def ranged(self) -> bool:
        """Whether parts of one file fit together: they carry the same strong validator (RFC 9110, 15.3.7.3).

        A server that first copies the file from elsewhere answers each request with a validator of its own; there a
        range would cost it the whole file.
        """
        if self._probe is None:
            return True
        found = []
        for _ in range(2):
            with read_plainly(f"{self._name}/{self._probe}"), closing(self._get(self._probe, "bytes=0-0")) as answer:
                found.append(answer.headers.get("ETag", "") if answer.status_code == requests.codes.partial else "")
        return found[0] == found[1] and found[0].startswith('"')

    def read(self, path: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """See `BundleFiles.read`."""
        asked = f"bytes={start}-{stop - 1}" if stop is not None and self.ranged else None
        with read_plainly(f"{self._name}/{path}"), closing(self._get(path, asked)) as answer:
            if asked and not answer.headers.get("Content-Range", "").startswith(asked.replace("=", " ") + "/"):
                found = answer.headers.get("Content-Range", "no range")
                raise TornBundle(f"{self._name}/{path}: asked for {asked} the server sent {found}: do not trust it")
            yield from answer.iter_content(CHUNK_BYTES)

    def _get(self, path: str, asked: str | None) -> requests.Response:
        # Compressed bytes would have other positions and another length.
        headers = {"Accept-Encoding": "identity"} | ({"Range": asked} if asked else {})
        answer = self._ask(path, headers)
        if answer.status_code == requests.codes.not_found:
            raise NotFound(f"{self._name}/{path} is not there: publish the engine again")
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            raise TornBundle(f"{self._name}/{path} is shorter than the manifest says: publish the engine again")
        answer.raise_for_status()
        return answer


@contextmanager
def read_plainly(what: str) -> Iterator[None]:
    """An error of requests becomes one of ours, in one sentence that begins with `what`.

    Raises:
        NotFound: the server said 404.
        Interrupted: anything else.
    """
    try:
        yield
    except requests.RequestException as error:
        missing = error.response is not None and error.response.status_code == requests.codes.not_found
        raise unreadable(what, error, missing=missing) from error


def unreadable(what: str, error: Exception, *, missing: bool) -> EngineryError:
    """The sentence for what a server did not give."""
    kind = NotFound if missing else Interrupted
    return kind(f"{what} could not be read ({first_line(error)}): look at the server and fetch again")


def first_line(error: Exception) -> str:
    """An error's first line, cut to what a sentence holds; its kind where it says nothing."""
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__
