"""The error hierarchy: each message says what is wrong, where, and what to do about it."""

import errno
import re

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PLACE = (*_NOT_ALLOWED, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)
_SHOWN_CHARACTERS = 120
# Codes that move a terminal's cursor, set its title or hide text; a line feed and a tab are text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_LOCAL = ("sqlite", "file")
_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class EngineryError(Exception):
    """Base of every error that users see; the command line prints its one sentence."""

    exit_code = 1

    def __str__(self) -> str:
        return printable(_ADDRESS.sub(lambda address: shown_address(address[0]), super().__str__()))


class BadInput(EngineryError):
    """Input from a person or an outside system that is not acceptable."""

    exit_code = 2


class BadName(BadInput):
    """A model, target or alias name that could escape a folder, a tag or a URL."""


class NotFound(BadInput):
    """A model, version, alias or file that does not exist."""


class DigestMismatch(EngineryError):
    """Bytes that differ from those that the manifest lists."""


class SignatureInvalid(EngineryError):
    """A manifest without a valid signature of a trusted publisher."""


class TornBundle(EngineryError):
    """A bundle that lacks files, has extra ones, or was never marked complete."""


class Interrupted(EngineryError):
    """A server or connection that failed during a transfer: trying again may help."""


class Replayed(EngineryError):
    """A release older than one this host has served, without a rollback to it in the history."""


class Unrecorded(EngineryError):
    """A production alias that points at a version to which no promotion in the history moved it."""


class PromotionRefused(EngineryError):
    """A promotion that its rules refuse; the message holds the gate's own reason."""


class Incompatible(BadInput):
    """An engine for another GPU, driver or TensorRT version than the one at hand."""


class BuildError(EngineryError):
    """A build that the backend refused, or whose process died."""


class GoldenMismatch(EngineryError):
    """Golden inputs that this host prepares or answers otherwise than where the engine was released."""

    exit_code = 4


class MeasurementError(EngineryError):
    """A measurement that is not stable enough to be trusted."""


def explain_place(error: OSError) -> EngineryError | None:
    """Return the sentence for a path that cannot be used, or for a full disk; None for any other error."""
    name = str(error.filename or "")
    where = f"{name[:_SHOWN_CHARACTERS]}{'…' if len(name) > _SHOWN_CHARACTERS else ''}: " if name else ""
    if error.errno in _DISK_FULL:
        return EngineryError(
            f"{where}{error.strerror}: free space on that disk, or on those of ENGINERY_HOME and TMPDIR, then run the "
            "same command again"
        )
    if error.errno in _NO_PLACE:
        permit = "let this user read and write it, or " if error.errno in _NOT_ALLOWED else ""
        return BadInput(f"{where}{error.strerror}: {permit}name another path")
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without colors, or its type's name when it has none.

    A first line that announces the second ("…:") is joined with it.
    """
    lines = _TERMINAL_CODE.sub("", str(error)).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def printable(text: str) -> str:
    """Return text from anywhere without the codes by which it could control a terminal."""
    return _CONTROL.sub("", _TERMINAL_CODE.sub("", text))


def shown_address(address: str) -> str:
    """Return an address for messages: without user, password, query and fragment, which may all hold secrets."""
    head, separator, tail = address.partition("://")
    scheme, rest = (head, tail) if separator else ("", head)
    if scheme not in _LOCAL:
        # Up to the last "@": whoever does not escape a password may have "/", "?" and "#" in it.
        rest = rest.rpartition("@")[2]
    return f"{scheme}{separator}{rest.partition('?')[0].partition('#')[0]}"
