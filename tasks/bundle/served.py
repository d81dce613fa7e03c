"""A bundle behind Triton's Python backend: raw text, image or audio in, the answer of `enginery run` out as JSON.

Runs in the server, from the zip of Enginery's modules that lies in the model's folder (tasks/bundle/python_model.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from registry.bundle.manifest import MANIFEST_FILE, read_manifest
from registry.errors import EngineryError, Incompatible
from tasks.bundle.answer import Answer, load_bundle
from tasks.bundle.python_model import ANSWER, BUNDLE_FOLDER, FILE
from tasks.model_tasks import model_task


@dataclass(frozen=True)
class _Asked:
    """The questions of one request, and their inputs."""

    questions: tuple[str, ...]
    inputs: tuple[Any, ...]


class TritonPythonModel:
    """What Triton's Python backend looks for in model.py."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle of this version's folder, and try it: while this fails, the version before serves.

        Raises:
            Incompatible: the server's Python lacks a package.
            EngineryError: as `load_bundle`.
        """
        import triton_python_backend_utils  # type: ignore[import-not-found]  # the server's own

        self.triton = triton_python_backend_utils
        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE_FOLDER
        try:
            manifest = read_manifest((folder / MANIFEST_FILE).read_bytes())
            self.bundle = load_bundle(folder, manifest, model_task(manifest.source.task))
            example = self._ask([self.bundle.task.write_request(each) for each in self.bundle.task.example_inputs])
            self.bundle.answer(example.inputs, example.questions)
        except ModuleNotFoundError as error:
            raise Incompatible(
                f"the server's Python has no {error.name}: see docs/serving.md, and install it"
            ) from error

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response per request; what all of them ask runs together.

        What one request asks in vain is its own error: the others are answered.
        """
        read = [self._read(request) for request in requests]
        answers = iter(self._answer([one for one in read if isinstance(one, _Asked)]))
        return [self._respond(next(answers) if isinstance(one, _Asked) else one) for one in read]

    def _read(self, request: Any) -> _Asked | EngineryError:
        stored = self.triton.get_input_tensor_by_name(request, self.bundle.task.request).as_numpy().reshape(-1)
        try:
            return self._ask([bytes(each) for each in stored])
        except EngineryError as error:
            return error

    def _ask(self, contents: Sequence[bytes]) -> _Asked:
        read = [self.bundle.task.read_request(content) for content in contents]
        return _Asked(tuple(question for question, _ in read), tuple(row_input for _, row_input in read))

    def _answer(self, asked: Sequence[_Asked]) -> list[list[Answer] | EngineryError]:
        questions = [question for one in asked for question in one.questions]
        inputs = [row_input for one in asked for row_input in one.inputs]
        try:
            answers = iter(self.bundle.answer(inputs, questions))
        except EngineryError as error:
            return [error] if len(asked) == 1 else [each for one in asked for each in self._answer([one])]
        return [[next(answers) for _ in one.inputs] for one in asked]

    def _respond(self, answers: list[Answer] | EngineryError) -> Any:
        if isinstance(answers, EngineryError):
            return self.triton.InferenceResponse(error=self.triton.TritonError(str(answers)))
        tensors = [self._tensor(ANSWER, [each.to_json() for each in answers])]
        if self.bundle.task.answer_file is not None:
            tensors.append(self._tensor(FILE, [each.file for each in answers]))
        return self.triton.InferenceResponse(tensors)

    def _tensor(self, name: str, values: Sequence[bytes | None]) -> Any:
        column = np.empty((len(values), 1), dtype=np.object_)
        column[:, 0] = values
        return self.triton.Tensor(name, column)
