"""The model task of a bundle: one of Enginery's, or the code that the bundle carries, which runs only where it may."""

from pathlib import Path

from registry.digest import file_sha256
from registry.errors import BadInput, DigestMismatch, NotFound
from registry.records import EngineManifest, largest_axes
from tasks.model_tasks import MODULE, ModelTask, model_task
from tasks.model_tasks.own.code import TASK_FILE
from tasks.model_tasks.own.module_task import open_module_task

TrustModule = bool | Path
"""Whether the code that a bundle carries may run: yes, no, or yes where it is, byte for byte, a file of the user's."""


def bundle_task(bundle: Path, manifest: EngineManifest, trust_module: TrustModule) -> ModelTask:
    """Return the task of a bundle that is verified already.

    Raises:
        BadInput: it is code of the owner's own, which may not run, or is not the file that the user trusts.
        DigestMismatch: the code was changed since the bundle was verified.
    """
    if manifest.source.task != MODULE:
        return model_task(manifest.source.task)
    digest = next((record.sha256 for record in manifest.files if record.path == TASK_FILE), None)
    if digest is None:
        raise NotFound(f"{bundle} has no {TASK_FILE}, which its task needs: publish the engine again")
    if trust_module is False:
        raise BadInput(
            f"{bundle} answers by Python code of the model's owner ({TASK_FILE}), which runs only where allowed:"
            " read it and add --allow-module, or name your own copy with --module FILE"
        )
    if isinstance(trust_module, Path) and _digest(trust_module) != digest:
        raise BadInput(
            f"{trust_module} is not the module that {manifest.model} was released with (sha256 {digest}): its code "
            f"does not run; compare it with {bundle / TASK_FILE}"
        )
    if _digest(bundle / TASK_FILE) != digest:
        raise DigestMismatch(f"{bundle / TASK_FILE} was changed since it was verified: fetch the bundle again")
    return open_module_task(bundle / TASK_FILE, tuple(largest_axes(manifest.build.profiles)), digest=digest)


def _digest(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): name a copy of the task module") from None
