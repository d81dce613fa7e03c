"""The server's own parser reads what is written for backends that its wheel lacks: it then misses the backend only."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.errors import EngineryError
from registry.records import AxisRange, Backend, GpuTarget, ShapeProfile
from registry.triton.control import load_version
from registry.triton.model import WarmupRow
from registry.triton.repository import CONFIG_FILE, PlacedModel, place_triton
from tests.support.triton_bundles import CPU, L4, PROFILE, verified, write_bundle
from tests.support.triton_server import Running

LARGE = ShapeProfile.of(batch=AxisRange(1, 16, 64), sequence=AxisRange(16, 32, 128))
B200 = GpuTarget("b200", Backend.TENSORRT, "10.0", "NVIDIA B200")
ROW = WarmupRow("good music", (("input_ids", (2, 5, 12, 3)), ("attention_mask", (1, 1, 1, 1))))
PLAN = b"a plan that no backend reads here"
Place = Callable[..., PlacedModel]


@pytest.fixture
def place(server: Running, tmp_path: Path) -> Iterator[Place]:
    """`place(target, …, profiles=…)` writes a bundle for each target and places them together."""

    def make(*targets: GpuTarget, profiles: tuple[ShapeProfile, ...] = (PROFILE,)) -> PlacedModel:
        bundles = [write_bundle(tmp_path / t.name, t, engine=PLAN, profiles=profiles, rows=[ROW]) for t in targets]
        return place_triton([verified(bundle) for bundle in bundles], server.repository, version=3)

    yield make
    shutil.rmtree(server.repository / "opinions", ignore_errors=True)


@pytest.mark.parametrize("profiles", [(PROFILE,), (PROFILE, LARGE), ()], ids=["one profile", "two", "none"])
@pytest.mark.parametrize("targets", [(L4,), (L4, B200)], ids=["one GPU", "two GPUs"])
def test_a_tensorrt_config_lacks_nothing_but_the_backend(
    server: Running, place: Place, targets: tuple[GpuTarget, ...], profiles: tuple[ShapeProfile, ...]
) -> None:
    placed = place(*targets, profiles=profiles)
    with pytest.raises(EngineryError, match=r"unable to find backend library for backend 'tensorrt'"):
        load_version(server.control, placed)


def test_an_onnxruntime_config_lacks_nothing_but_the_backend(server: Running, place: Place) -> None:
    with pytest.raises(EngineryError, match=r"unable to find backend library for backend 'onnxruntime'"):
        load_version(server.control, place(CPU))


@pytest.mark.parametrize(
    "wrong",
    [b"preferred_batch_sizes: 4\n", b'name: "another"\n', b'output { name: "more" dims: 1 }\n'],
    ids=["unknown field", "other name", "no dtype"],
)
def test_parser_refuses_a_wrong_config(server: Running, place: Place, wrong: bytes) -> None:
    placed = place(L4)
    config = placed.folder / CONFIG_FILE
    config.write_bytes(config.read_bytes() + wrong)
    with pytest.raises(EngineryError) as refused:
        load_version(server.control, placed)
    assert "backend library" not in str(refused.value)
