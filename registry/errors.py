"""The error hierarchy: each message says what is wrong, where, and what to do about it."""

import re

_TERMINAL_CODE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class EngineryError(Exception):
    """Base of every error that users see; the command line prints its one sentence."""

    exit_code = 1


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


class MeasurementError(EngineryError):
    """A measurement that is not stable enough to be trusted."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without colors, or its type's name when it has none.

    A first line that announces the second ("…:") is joined with it.
    """
    lines = _TERMINAL_CODE.sub("", str(error)).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
