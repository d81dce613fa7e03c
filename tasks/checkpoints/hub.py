"""The Hugging Face hub's protocol: which commit a name means, what it lists, and its bytes, hashed.

huggingface_hub reads HF_ENDPOINT at import; here it is read at each call, and passed on. It checks sizes only:
the sha256 (large files) or git blob id (small ones) that the hub lists for the commit is checked here.
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
    """A file of a commit: its size in bytes, and sha256 (large files) or git blob id, where the hub says them."""

    name: str
    size_bytes: int | None
    sha256: str | None
    blob_id: str | None


def endpoint() -> str:
    """HF_ENDPOINT as it is now, or the public hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def list_commit(repo: str, revision: str) -> tuple[str, dict[str, HubFile]]:
    """The 40-hex commit that `revision` names now, and its files by name (not yet checked).

    Raises:
        BadInput: the repository or the revision does not exist, or needs a token.
        EngineryError: the hub does not answer, or not with a commit.
    """
    with _hub_errors(repo, revision):
        info = HfApi(endpoint=endpoint()).model_info(
            repo, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    commit = str(info.sha)
    if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(revision) and commit != revision):
        raise EngineryError(
            f"{endpoint()} answers {commit!r:.60} for {repo}@{revision}, which is not that commit: check HF_ENDPOINT"
        )
    return commit, {entry.rfilename: _hub_file(entry) for entry in info.siblings or ()}


def download(repo: str, commit: str, files: Mapping[str, HubFile], *, into: Path) -> None:
    """Fetch files of one commit as plain files under `into`, and check each against the commit's listing.

    Raises:
        DigestMismatch: the bytes are not those that the commit lists.
        BadInput, EngineryError: as in `list_commit`.
    """
    for name, file in files.items():
        with _hub_errors(repo, commit), _quiet():
            fetched = hf_hub_download(repo, name, revision=commit, local_dir=into, endpoint=endpoint())
        _check_bytes(Path(fetched), file, where=f"{repo}@{commit[:12]}")


def _hub_file(entry: Any) -> HubFile:
    return HubFile(entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)


def _check_bytes(path: Path, file: HubFile, *, where: str) -> None:
    if file.sha256:
        expected, actual = file.sha256, file_sha256(path)
    elif file.blob_id:
        expected, actual = file.blob_id, git_blob_id(path.read_bytes())
    else:
        raise EngineryError(f"{endpoint()} gives no hash for {file.name} of {where}: use a hub or mirror that does")
    if actual != expected:
        raise DigestMismatch(f"{file.name} of {where} hashes to {actual}, the hub lists {expected}: download it again")


def git_blob_id(content: bytes) -> str:
    """Git's name for a file's content (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects)."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _hub_errors(repo: str, revision: str) -> Iterator[None]:
    """One sentence for each way that a hub says no; gated and missing first, they are HTTP errors too."""
    where = f"{repo}@{revision} at {endpoint()}"
    try:
        yield
    except HFValidationError:
        raise BadInput(f"{repo!r:.100} is not a repository name: write it as owner/name") from None
    except GatedRepoError:
        raise BadInput(f"{where} is gated: accept its terms there, then set HF_TOKEN") from None
    except RevisionNotFoundError:
        raise BadInput(f"{where} has no such revision: give a branch, a tag or a commit that exists") from None
    except RepositoryNotFoundError:
        raise BadInput(f"{where} does not exist or is private: check the name, or set HF_TOKEN") from None
    except LocalEntryNotFoundError:
        raise EngineryError(f"{where} does not answer: check the network and HF_ENDPOINT, then try again") from None
    except EntryNotFoundError:
        raise BadInput(f"{where} lists a file that it does not hold: take another revision") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise EngineryError(f"{where} answers HTTP {status}: try again later, or check HF_ENDPOINT") from None
    except (OSError, ValueError) as error:
        # requests' errors are OSErrors; a body that is not the hub's JSON is a ValueError.
        raise EngineryError(
            f"{where} does not answer as a hub ({type(error).__name__}): check the network and HF_ENDPOINT, try again"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and notices of huggingface_hub: the caller shows its own."""
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
    """The 40-hex commit that a dataset's `revision` names now.

    Raises:
        BadInput, EngineryError: as in `list_commit`.
    """
    with _hub_errors(repo, revision):
        return str(HfApi(endpoint=endpoint()).dataset_info(repo, revision=revision, timeout=TIMEOUT_SECONDS).sha)
