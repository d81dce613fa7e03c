"""Answer inputs with a fetched bundle: what `enginery run` does, and a pattern for a team's own server."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from registry.bundle.manifest import verify_files
from registry.errors import BadInput
from registry.records import EngineManifest, largest_axes
from tasks.backends import open_engine
from tasks.model_tasks import model_task
from tasks.model_tasks.contract import ShownAnswer


def answer(bundle: Path, manifest: EngineManifest, questions: Sequence[str]) -> list[ShownAnswer]:
    """Check the bundle against its verified manifest, load its engine, answer the questions in one batch.

    Raises:
        TornBundle, DigestMismatch: the bundle is not what was published; nothing was loaded.
        BadInput: more inputs than the engine's largest batch, or one that has no answer.
        Incompatible: an engine for another GPU or library version than this machine has.
    """
    verify_files(bundle, manifest)
    build, task = replace(manifest.build, directory=bundle), model_task(manifest.source.task)
    largest = largest_axes(build.profiles)
    if len(questions) > (most := largest.get("batch", len(questions))):
        raise BadInput(f"give 1 to {most} inputs: the engine was built for such batches")
    inputs = [task.read_question(question) for question in questions]
    encoder = task.open_encoder(bundle, build.input_names, largest)
    return task.show(open_engine(build).run(encoder.encode(inputs)), questions, manifest.source.classes, encoder)
