"""Every task's model in a real tritonserver: raw inputs in, the answers of `enginery run` out, errors row by row."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from registry.triton.control import load_version
from registry.triton.repository import place_triton
from tasks.bundle.answer import Answer, LoadedBundle, load_bundle
from tasks.bundle.golden import read_golden
from tasks.bundle.python_model import make_python_model
from tasks.model_tasks import model_task
from tasks.model_tasks.images.masks import is_another_map
from tasks.model_tasks.inputs.image_files import decode_mask, read_size
from tests.support.task_bundles import write_task_bundle
from tests.support.task_recipes import TASKS
from tests.support.triton_bundles import verified
from tests.support.triton_server import Running

BROKEN = {"text": b" ", "image": b"no image", "audio": b"no audio"}
REFUSALS = {"text": "an empty text|give two texts", "image": "no image", "audio": "no audio"}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Served:
    """A bundle that a server has loaded: what a client sends, and what is answered here."""

    client: InferenceServerClient
    bundle: LoadedBundle
    contents: tuple[bytes, ...]

    def ask(self, contents: Sequence[bytes]) -> Any:
        return self.client.infer("tiny", [as_tensor(self.bundle.task.request, contents)])

    def answer_here(self, contents: Sequence[bytes]) -> list[Answer]:
        asked = [self.bundle.task.read_request(content) for content in contents]
        return self.bundle.answer([row_input for _, row_input in asked], [question for question, _ in asked])


def as_tensor(name: str, contents: Sequence[bytes]) -> InferInput:
    stored = np.empty((len(contents), 1), dtype=np.object_)
    stored[:, 0] = contents
    tensor = InferInput(name, list(stored.shape), "BYTES")
    tensor.set_data_from_numpy(stored)
    return tensor


@pytest.fixture(params=sorted(TASKS))
def served(request: pytest.FixtureRequest, server: Running, tmp_path: Path) -> Iterator[Served]:
    bundle = verified(write_task_bundle(tmp_path, request.param))
    placed = place_triton([bundle], server.repository, version=1, python_model=make_python_model(request.param))
    load_version(server.control, placed)
    loaded = load_bundle(bundle.folder, bundle.manifest, model_task(request.param))
    rows = [row.decoded for row in read_golden(bundle.folder, bundle.manifest).rows]
    contents = tuple(loaded.task.write_request(row) for row in rows)
    with InferenceServerClient(server.address) as client:
        yield Served(client, loaded, contents)
    server.unload("tiny")
    shutil.rmtree(placed.folder)


def is_close(one: Any, other: Any) -> bool:
    """Tell whether two answers are the same but for the last bits of their numbers."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-4, abs=1e-5)
    return bool(one == other)


def test_a_task_is_served_as_enginery_run_answers(served: Served) -> None:
    batches = [served.contents[:4], *([content] for content in served.contents)]
    for contents in batches:
        expected = [json.loads(each.to_json()) for each in served.answer_here(contents)]
        answers = [json.loads(stored) for (stored,) in served.ask(contents).as_numpy("answer")]
        assert all(map(is_close, answers, expected)), (answers, expected)
    assert len({each.to_json() for each in served.answer_here(served.contents)}) > 1
    if served.bundle.task.answer_file == ".png":
        assert_same_maps(served)
    assert_that_what_has_no_answer_fails_its_own_request(served)


def assert_same_maps(served: Served) -> None:
    given = [stored for (stored,) in served.ask(served.contents[:4]).as_numpy("file")]
    wanted = [each.file or b"" for each in served.answer_here(served.contents[:4])]
    for one, other, image in zip(given, wanted, served.contents, strict=False):
        assert decode_mask(one).shape == read_size(image)
        assert not is_another_map(*(np.frombuffer(each, dtype=np.uint8) for each in (one, other)))


def assert_that_what_has_no_answer_fails_its_own_request(served: Served) -> None:
    kind = served.bundle.task.request
    broken = BROKEN[kind]
    with pytest.raises(InferenceServerException, match=REFUSALS[kind]):
        served.ask([served.contents[0], broken])

    outcomes: Queue[Any] = Queue()

    def keep(result: Any, error: Any) -> None:
        outcomes.put(error or result)

    # Sent at once, so that the server batches what it gets together.
    for contents in (served.contents[:1], [broken], served.contents[1:2], [broken, broken]):
        served.client.async_infer("tiny", [as_tensor(kind, contents)], keep)
    failed = [isinstance(outcomes.get(timeout=60), InferenceServerException) for _ in range(4)]
    assert sorted(failed) == [False, False, True, True]
