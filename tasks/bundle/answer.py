"""Answer inputs with a fetched bundle: what `enginery run` and a server do."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from registry.bundle.manifest import verify_files
from registry.records import EngineManifest, largest_axes
from tasks.backends import Session, open_engine
from tasks.bundle.task import TrustModule, bundle_task
from tasks.model_tasks.contract import Encoder, ModelTask, ShownAnswer


@dataclass(frozen=True)
class Answer:
    """The answer to one input: what is shown of it, and the bytes of its file where the task's answers are files."""

    shown: ShownAnswer
    file: bytes | None = None

    def to_json(self) -> bytes:
        """Return what is shown as JSON, UTF-8."""
        return json.dumps(asdict(self.shown), ensure_ascii=False).encode()  # type: ignore[call-overload]  # a Protocol


@dataclass(frozen=True)
class LoadedBundle:
    """A loaded engine with what its task does before and after it; `largest_batch` is the engine's, None: any."""

    task: ModelTask
    classes: tuple[str, ...]
    session: Session
    encoder: Encoder
    largest_batch: int | None

    def answer(self, inputs: Sequence[Any], questions: Sequence[str]) -> list[Answer]:
        """Return the answer to each input, in batches that the engine takes; `questions` name them in the answers.

        Raises:
            BadInput: an input has no answer.
        """
        answers: dict[int, Answer] = {}
        for positions, batch in self.encoder.batches(inputs, self.largest_batch or max(1, len(inputs))):
            outputs = self.session.run(self.encoder.encode(batch))
            names = [questions[position] for position in positions]
            shown = self.task.show(outputs, batch, names, self.classes, self.encoder)
            files = [None] * len(batch) if self.task.answer_file is None else self._write_files(outputs, batch)
            answers.update(zip(positions, map(Answer, shown, files), strict=True))
        return [answers[position] for position in range(len(inputs))]

    def _write_files(self, outputs: Sequence[Any], batch: Sequence[Any]) -> list[bytes]:
        reduced = self.task.reduce_outputs(outputs, batch, self.encoder)
        return [answer.tobytes() for answer in self.task.answers(reduced, batch, self.encoder)]


def load_bundle(bundle: Path, manifest: EngineManifest, task: ModelTask) -> LoadedBundle:
    """Load the engine and the encoder of a bundle that is verified already, whose task is `task`.

    Raises:
        DigestMismatch: the engine is not what was published.
        BadInput: a file of the encoder is not what the task reads.
        Incompatible: an engine for another GPU or library version than this machine has.
    """
    build = replace(manifest.build, directory=bundle)
    largest = largest_axes(build.profiles)
    encoder = task.open_encoder(bundle, build.input_names, largest)
    return LoadedBundle(task, manifest.source.classes, open_engine(build), encoder, largest.get("batch"))


def answer(
    bundle: Path, manifest: EngineManifest, questions: Sequence[str], *, trust_module: TrustModule = False
) -> list[Answer]:
    """Check the bundle against its verified manifest, load its engine, answer what a user asks on the command line.

    Raises:
        TornBundle, DigestMismatch: the bundle is not what was published; nothing was loaded.
        BadInput: a question has no answer, or the task's module is not trusted.
        Incompatible: as `load_bundle`.
    """
    verify_files(bundle, manifest)
    task = bundle_task(bundle, manifest, trust_module)
    inputs = [task.read_question(question) for question in questions]
    return load_bundle(bundle, manifest, task).answer(inputs, questions)
