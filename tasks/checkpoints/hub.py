"""The Hugging Face hub's protocol: resolve a revision to a commit, list its files, download and verify them.

huggingface_hub reads HF_ENDPOINT at import; here it is read at each call and passed on. huggingface_hub checks file
sizes only; the sha256 (large files) or git blob id (small ones) that the hub lists for the commit is checked here.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from registry.digest import file_sha256
from registry.errors import BadInput, DigestMismatch, EngineryError

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class HubFile:
    """A file of a commit: size in bytes, and sha256 (large files) or git blob id, as far as the hub lists them."""

    name: str
    size_bytes: int | None
    sha256: str | None
    blob_id: str | None


def read_endpoint() -> str:
    """Return HF_ENDPOINT as it is now, or the public hub's URL."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def list_commit(repo: str, revision: str) -> tuple[str, dict[str, HubFile]]:
    """Resolve `revision` to its 40-hex commit, and list that commit's files by name (names not yet checked).

    Raises:
        BadInput: the repository or the revision does not exist, or needs a token.
        EngineryError: the hub does not answer, or answers without a valid commit.
    """
    with _translate_hub_errors(repo, revision):
        info = HfApi(endpoint=read_endpoint()).model_info(
            repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
        raise EngineryError(
            f"{read_endpoint()} answers {commit!r:.60} for {repo}@{revision}, another commit: check HF_ENDPOINT"
        )
    return commit, {entry.rfilename: _make_hub_file(entry) for entry in info.siblings or ()}


def download_files(repo: str, commit: str, files: Mapping[str, HubFile], *, into: Path) -> None:
    """Download files of one commit into `into`, and verify each against the commit's listing.

    Raises:
        DigestMismatch: the bytes differ from the hash that the commit lists.
        BadInput, EngineryError: as in `list_commit`.
    """
    for name, file in files.items():
        with _translate_hub_errors(repo, commit), _silence_hub():
            fetched = hf_hub_download(repo, name, revision=commit, local_dir=into, endpoint=read_endpoint())
        _check_bytes(Path(fetched), file, where=f"{repo}@{commit[:12]}")


def _make_hub_file(entry: Any) -> HubFile:
    return HubFile(entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)


def _check_bytes(path: Path, file: HubFile, *, where: str) -> None:
    if file.sha256:
        expected, actual = file.sha256, file_sha256(path)
    elif file.blob_id:
        expected, actual = file.blob_id, hash_git_blob(path.read_bytes())
    else:
        raise EngineryError(
            f"{read_endpoint()} lists no hash for {file.name} of {where}: use a hub or mirror that does"
        )
    if actual != expected:
        raise DigestMismatch(f"{file.name} of {where} hashes to {actual}, the hub lists {expected}: download it again")


def hash_git_blob(content: bytes) -> str:
    """Return git's blob id of a file's content (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _translate_hub_errors(repo: str, revision: str) -> Iterator[None]:
    """Raise our errors, one sentence per cause, for huggingface_hub's.

    Gated and missing repositories come before HfHubHTTPError, which is their base class.
    """
    where = f"{repo}@{revision} at {read_endpoint()}"
    try:
        yield
    except HFValidationError:
        raise BadInput(f"{repo!r:.100} is not a repository name: write it as owner/name") from None
    except GatedRepoError:
        raise BadInput(f"{where} is gated: accept its terms on the hub, then set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise BadInput(f"{where} has no such revision: name an existing branch, tag or commit") from None
    except RepositoryNotFoundError:
        raise BadInput(f"{where} does not exist or is private: check the name, or set HF_TOKEN") from None
    except LocalEntryNotFoundError:
        raise EngineryError(f"{where} does not answer: check the network and HF_ENDPOINT, then try again") from None
    except EntryNotFoundError:
        raise BadInput(f"{where} lists a file that it cannot deliver: use another revision") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise EngineryError(f"{where} answers HTTP {status}: try again later, or check HF_ENDPOINT") from None
    except (OSError, ValueError) as error:
        # requests' errors are OSErrors; a body that is not the hub's JSON is a ValueError.
        raise EngineryError(
            f"{where} does not answer as a hub ({type(error).__name__}): check the network and HF_ENDPOINT, then retry"
        ) from None


@contextmanager
def _silence_hub() -> Iterator[None]:
    """Hide huggingface_hub's progress bars and notices: the caller shows its own progress."""
    logger = logging.getLogger("huggingface_hub")
    level, had_bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            enable_progress_bars()


def dataset_commit(repo: str, revision: str) -> str:
    """Resolve a dataset's `revision` to its 40-hex commit.

    Raises:
        BadInput, EngineryError: as in `list_commit`.
    """
    with _translate_hub_errors(repo, revision):
        return str(HfApi(endpoint=read_endpoint()).dataset_info(repo, revision=revision, timeout=TIMEOUT_SECONDS).sha)
