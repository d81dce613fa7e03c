"""The error hierarchy: each message says what is wrong, where, and what to do about it."""


class EngineryError(Exception):
    """Base of every error that a user can meet; the command line prints it as one sentence."""

    exit_code = 1


class BadInput(EngineryError):
    """Something a person or an outside system handed in is not acceptable."""

    exit_code = 2


class BadName(BadInput):
    """A model, target or alias name that could escape a folder, a tag or a URL."""


class NotFound(BadInput):
    """The registry has no such model, version or alias."""


class DigestMismatch(EngineryError):
    """Bytes differ from what the manifest promised."""


class SignatureInvalid(EngineryError):
    """No signature of a trusted publisher stands under the manifest."""


class TornBundle(EngineryError):
    """A bundle lacks files, has extra ones, or was never marked complete."""


class Interrupted(EngineryError):
    """A server failed, or a connection broke, while something was read: trying again may help."""


class Replayed(EngineryError):
    """An older release than this host has served, and no rollback in the history says that this is meant."""


class PromotionRefused(EngineryError):
    """The rules of promotion say no; the message holds the gate's own reason."""


class Incompatible(BadInput):
    """An engine for another GPU, driver or TensorRT version than the one at hand."""


class BuildError(EngineryError):
    """A backend refused to build, or its process died."""


class MeasurementError(EngineryError):
    """A figure could not be measured well enough to be trusted."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type's name when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
