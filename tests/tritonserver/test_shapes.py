"""What config.pbtxt says of shapes, as the real server reads it: a number a row, several outputs, free axes.

The server of the wheel runs Python models alone, so one stands for the backend, and sees what Triton hands to that.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from registry.bundle.manifest import MANIFEST_FILE, read_manifest, write_manifest
from registry.records import AxisRange, ShapeProfile, Tensor
from registry.triton.control import load_version
from registry.triton.repository import CONFIG_FILE, place_triton
from tests.support.triton_bundles import verified, write_bundle
from tests.support.triton_server import Running

# In place of an engine: a row's count is its length plus the values of its sound; the lengths must be of rank 1.
STAND_IN = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        sound, length = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("sound", "length")
        )
        if length.ndim != 1 or sound.shape[1] != 2:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{sound.shape} {length.shape}"))
        count = (length + sound.sum(axis=(1, 2))).astype(np.float32)
        logits = np.stack([count, -count], axis=1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("logits", logits), pb_utils.Tensor("count", count)])
"""


@pytest.fixture
def client(server: Running, tmp_path: Path) -> Iterator[InferenceServerClient]:
    bundle = write_bundle(tmp_path / "bundle")
    manifest = read_manifest((bundle / MANIFEST_FILE).read_bytes())
    build = replace(
        manifest.build,
        inputs=(Tensor("sound", "float32", ("batch", 2, "time")), Tensor("length", "int64", ("batch",))),
        outputs=(*manifest.build.outputs, Tensor("count", "float32", ("batch",))),
        profiles=(ShapeProfile.of(batch=AxisRange(1, 2, 4), time=AxisRange(1, 3, 9)),),
    )
    (bundle / MANIFEST_FILE).write_bytes(write_manifest(replace(manifest, build=build)))
    placed = place_triton([verified(bundle)], server.repository, version=1)
    config = placed.folder / CONFIG_FILE
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
    (placed.folder / "1" / "model.py").write_text(STAND_IN)
    load_version(server.control, placed)
    with InferenceServerClient(server.address) as connected:
        yield connected
    server.unload("opinions")
    shutil.rmtree(placed.folder)


def ask(
    client: InferenceServerClient, sound: NDArray[np.float32], length: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    tensors = [InferInput("sound", list(sound.shape), "FP32"), InferInput("length", list(length.shape), "INT64")]
    for tensor, values in zip(tensors, (sound, length), strict=True):
        tensor.set_data_from_numpy(values)
    result = client.infer("opinions", tensors)
    return [result.as_numpy(name) for name in ("logits", "count")]


@pytest.mark.parametrize("time", [1, 9])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_number_a_row_reaches_the_engine_without_an_axis_of_its_own(
    client: InferenceServerClient, rows: int, time: int
) -> None:
    sound, length = np.ones((rows, 2, time), np.float32), np.arange(rows, dtype=np.int64).reshape(-1, 1)
    logits, count = ask(client, sound, length)
    assert count.shape == (rows, 1)
    assert count[:, 0].tolist() == [row + 2.0 * time for row in range(rows)]
    assert logits.tolist() == [[value, -value] for value in count[:, 0]]


def test_a_batch_beyond_the_profile_is_refused_by_the_server(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="batch-size must be <= 4"):
        ask(client, np.ones((5, 2, 3), np.float32), np.ones((5, 1), np.int64))
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'sound'"):
        ask(client, np.ones((1, 3, 3), np.float32), np.ones((1, 1), np.int64))
