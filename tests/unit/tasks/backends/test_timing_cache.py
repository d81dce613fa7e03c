"""The next build does not repeat the timing of earlier ones, and a cache that cannot be trusted is discarded.

TensorRT's builder does not run here. The fake below has the methods of its builder, config and cache, whose names
test_trt_bindings.py looks up in TensorRT 11.4, and its rules as its documentation has them: a miss is timed and kept,
or is an error where the flag says so; caches combine within one version and device; unreadable bytes give an empty one.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.inputs.recipe import Recipe
from flows.release.context import ReleaseContext
from flows.release.engines import open_timing
from flows.release.progress import lines_report
from registry.errors import BuildError, EngineryError
from registry.mlflow.runs.timing_caches import EXPERIMENT, FILE, TimingCaches
from registry.mlflow.store import MlflowStore
from registry.records import Backend, GpuTarget
from tasks.backends.build import REPLAYED
from tasks.backends.contract import TimingFolder
from tasks.backends.timing_cache import shared_timing, timing_key
from tasks.backends.trt.builder import TensorRT
from tasks.backends.trt.timing import build_with_timing

KEY, REPLAY = "a" * 64, "b" * 64
FLAGS = SimpleNamespace(
    EDITABLE_TIMING_CACHE="editable", ERROR_ON_TIMING_CACHE_MISS="error", DISABLE_COMPILATION_CACHE="no code"
)


@dataclass
class Cache:
    device: str
    entries: dict[str, str] = field(default_factory=dict)

    def serialize(self) -> bytes:
        return json.dumps([self.device, self.entries]).encode()

    def combine(self, other: "Cache", ignore_mismatch: bool) -> bool:
        if self.device != other.device and not ignore_mismatch:
            return False
        self.entries = other.entries | self.entries
        return True


class Config:
    def __init__(self, device: str) -> None:
        self.device, self.flags, self.cache = device, set[str](), Cache(device)

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def create_timing_cache(self, content: bytes) -> Cache:
        try:
            device, entries = json.loads(content)
        except ValueError:
            return Cache(self.device)
        return Cache(device, entries)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return ignore_mismatch or cache.device == self.device


@dataclass
class Gpu:
    """Builds networks (lists of layers) as TensorRT does; timings differ on every build, as on a busy GPU."""

    device: str = "NVIDIA L4, 11.4.0"
    timed: list[str] = field(default_factory=list)
    seen: Config | None = None

    def build(self, timing: TimingFolder, *network: str) -> bytes | None:
        self.timed.clear()
        trt, self.seen = SimpleNamespace(BuilderFlag=FLAGS), Config(self.device)
        plan: bytes | None = build_with_timing(trt, self, network, self.seen, timing)
        return plan

    def build_serialized_network(self, network: tuple[str, ...], config: Config) -> bytes | None:
        for layer in network:
            if layer not in config.cache.entries:
                if FLAGS.ERROR_ON_TIMING_CACHE_MISS in config.flags:
                    return None
                self.timed.append(layer)
                config.cache.entries[layer] = f"tactic {id(config)}"
        return json.dumps([config.cache.entries[layer] for layer in network]).encode()


@pytest.fixture
def caches(mlflow_store: MlflowStore) -> TimingCaches:
    return TimingCaches(mlflow_store)


Build = Callable[..., bytes | None]


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def build(caches: TimingCaches, tmp_path: Path, notices: list[str]) -> Build:
    """`build(gpu, *layers)` is one build that shares what it timed; with `strict` it may only replay."""

    def make(gpu: Gpu, *layers: str, strict: bool = False, key: str = KEY) -> bytes | None:
        with shared_timing(caches, key, REPLAY if strict else None, tmp_path, notices.append) as timing:
            return gpu.build(timing, *layers)

    return make


def files(store: MlflowStore) -> list[Path]:
    return sorted((store._artifact_root or Path()).glob(f"{EXPERIMENT}/*/artifacts/{FILE}"))


def test_timed_layers_are_not_timed_again(build: Build, notices: list[str]) -> None:
    first = Gpu()
    plan = build(first, "matmul", "softmax")
    assert first.timed == ["matmul", "softmax"]
    second = Gpu()
    assert build(second, "matmul", "softmax") == plan
    assert build(second, "matmul", "gelu") != plan
    assert second.timed == ["gelu"]
    assert notices == []


def test_builds_side_by_side_lose_nothing(caches: TimingCaches, build: Build, tmp_path: Path) -> None:
    with (
        shared_timing(caches, KEY, None, tmp_path, print) as one,
        shared_timing(caches, KEY, None, tmp_path, print) as two,
    ):
        Gpu().build(one, "matmul")
        Gpu().build(two, "softmax")
    assert len(caches.read(KEY, print)) == 2
    third = Gpu()
    build(third, "matmul", "softmax", "gelu")
    assert third.timed == ["gelu"]
    assert len(caches.read(KEY, print)) == 1


def test_a_build_that_times_nothing_new_stores_nothing(caches: TimingCaches, build: Build) -> None:
    build(Gpu(), "matmul")
    before = caches.read(KEY, print)
    build(Gpu(), "matmul")
    assert caches.read(KEY, print) == before


def test_a_failed_build_stores_nothing(caches: TimingCaches, tmp_path: Path) -> None:
    def build() -> None:
        with shared_timing(caches, KEY, None, tmp_path, print) as timing:
            Gpu().build(timing, "matmul")
            raise BuildError("out of memory")

    with pytest.raises(BuildError):
        build()
    assert caches.read(KEY, print) == ()
    assert not list(tmp_path.glob("timing-*"))


def test_keys_hold_the_gpu_the_version_and_the_options() -> None:
    keys = {
        timing_key("NVIDIA L4", "8.9", "11.4.0", ()),
        timing_key("NVIDIA L40S", "8.9", "11.4.0", ()),
        timing_key("NVIDIA L4", "9.0", "11.4.0", ()),
        timing_key("NVIDIA L4", "8.9", "11.4.1", ()),
        timing_key("NVIDIA L4", "8.9", "11.4.0", REPLAYED),
    }
    assert len(keys) == 5


def test_a_cache_of_another_gpu_or_version_under_our_key_is_discarded(
    caches: TimingCaches, build: Build, notices: list[str]
) -> None:
    caches.write(KEY, Cache("Tesla T4, 10.9.0", {"matmul": "foreign"}).serialize())
    gpu = Gpu()
    plan = build(gpu, "matmul")
    assert gpu.timed == ["matmul"]
    assert b"foreign" not in (plan or b"")
    (line,) = notices
    assert "was discarded" in line
    assert [json.loads(cache.content)[0] for cache in caches.read(KEY, print)] == ["NVIDIA L4, 11.4.0"]


def test_bytes_that_tensorrt_cannot_read_are_discarded(caches: TimingCaches, build: Build, notices: list[str]) -> None:
    caches.write(KEY, b"no cache at all, and longer than an empty one")
    assert build(Gpu(), "matmul")
    assert ["discarded" in line for line in notices] == [True]
    assert build(Gpu(), "matmul")
    assert len(notices) == 1


@pytest.mark.parametrize("damage", [b"", b"another", None])
def test_a_cache_whose_bytes_changed_in_the_store_never_reaches_tensorrt(
    mlflow_store: MlflowStore, build: Build, notices: list[str], damage: bytes | None
) -> None:
    build(Gpu(), "matmul")
    (file,) = files(mlflow_store)
    file.write_bytes(file.read_bytes() + b" " if damage is None else damage)
    gpu = Gpu()
    assert build(gpu, "matmul")
    assert gpu.timed == ["matmul"]
    (line,) = notices
    assert "is not what was written there; it is thrown away" in line


def test_a_file_that_is_gone_costs_time_and_no_build(
    mlflow_store: MlflowStore, build: Build, notices: list[str]
) -> None:
    build(Gpu(), "matmul")
    (file,) = files(mlflow_store)
    file.unlink()
    assert build(Gpu(), "matmul")
    assert ["left unread" in line for line in notices] == [True]


def test_a_registry_that_fails_costs_time_and_no_build(
    mlflow_store: MlflowStore, build: Build, notices: list[str]
) -> None:
    client = mlflow_store.client
    client.delete_experiment(client.create_experiment(EXPERIMENT))
    assert build(Gpu(), "matmul")
    assert ["built without" in notices[0], "was not stored" in notices[1], len(notices)] == [True, True, 2]


def test_a_cache_larger_than_any_can_be_is_not_kept(
    caches: TimingCaches, build: Build, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "largest_bytes", 20)
    assert build(Gpu(), "matmul")
    assert caches.read(KEY, print) == ()
    assert ["at most 20 are" in line for line in notices] == [True]


def test_a_larger_file_than_was_written_is_not_read_to_its_end(
    mlflow_store: MlflowStore, caches: TimingCaches, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caches.write(KEY, b"small")
    monkeypatch.setattr(caches, "largest_bytes", 1000)
    (file,) = files(mlflow_store)
    with file.open("wb") as huge:
        huge.truncate(2**40)  # a sparse terabyte: reading it all would not end
    assert caches.read(KEY, notices.append) == ()
    assert len(notices) == 1


def test_a_cache_that_is_still_being_written_is_not_found(mlflow_store: MlflowStore, caches: TimingCaches) -> None:
    caches.write(KEY, b"whole")
    (run,) = mlflow_store.client.search_runs([caches._experiment()])
    mlflow_store.client.update_run(run.info.run_id, "RUNNING")
    assert caches.read(KEY, print) == ()


def test_a_key_that_is_no_digest_is_refused(caches: TimingCaches) -> None:
    with pytest.raises(EngineryError):
        caches.read("' or tags.x != '", print)


def test_strict_builds_are_the_same_engine_each_time(build: Build, notices: list[str]) -> None:
    first = build(Gpu(), "matmul", "softmax", strict=True)
    # Meanwhile other builds time other layers under the same key.
    build(Gpu(), "gelu")
    again = Gpu()
    assert build(again, "matmul", "softmax", strict=True) == first
    assert again.timed == []
    assert notices == []


def test_a_strict_engine_is_never_the_one_that_was_built_while_timing(build: Build) -> None:
    gpu = Gpu()
    assert build(gpu, "matmul", strict=True)
    assert gpu.seen is not None
    assert gpu.seen.flags == set(vars(FLAGS).values())


def test_a_strict_build_that_would_have_to_time_again_is_refused(build: Build) -> None:
    build(Gpu(), "matmul", strict=True)
    assert build(Gpu(), "matmul", "softmax", strict=True) is None


def test_a_replay_that_tensorrt_cannot_read_is_discarded_and_timed_again(
    caches: TimingCaches, build: Build, notices: list[str]
) -> None:
    caches.write(REPLAY, b"rubbish that is longer than an empty cache is")
    assert build(Gpu(), "matmul", strict=True)
    assert ["discarded" in line for line in notices] == [True]
    assert len(caches.read(REPLAY, print)) == 1


def test_no_compiled_code_is_put_into_a_cache_that_others_read(build: Build) -> None:
    gpu = Gpu()
    build(gpu, "matmul")
    assert gpu.seen is not None
    assert gpu.seen.flags == {FLAGS.DISABLE_COMPILATION_CACHE}


@pytest.mark.parametrize(("strict", "options"), [(False, ()), (True, REPLAYED)])
def test_only_tensorrt_gets_a_folder_and_its_key_has_the_version_that_is_installed(
    mlflow_store: MlflowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strict: bool, options: Any
) -> None:
    monkeypatch.setattr(TensorRT, "version", lambda _self: "11.4.0")
    monkeypatch.setattr("flows.release.engines.read_host", lambda: SimpleNamespace(gpu_name="NVIDIA L4"))
    recipe = Recipe.model_construct(workspace_mb=64)
    context = ReleaseContext(None, recipe, lines_report(lambda _: None), mlflow_store, None, None)  # type: ignore[arg-type]  # not looked at
    replay = REPLAY if strict else None
    for backend in (Backend.ONNXRUNTIME, Backend.TENSORRT_RTX):
        with open_timing(context, GpuTarget("there", backend, "8.9"), replay, tmp_path / "into") as nothing:
            assert nothing is None
    with open_timing(context, GpuTarget("l4", Backend.TENSORRT, "8.9"), replay, tmp_path / "into") as timing:
        assert timing is not None
        assert timing.strict is strict
        Gpu().build(timing, "matmul")
    key = timing_key("NVIDIA L4", "8.9", "11.4.0", (("workspace_mb", "64"), *options))
    assert len(TimingCaches(mlflow_store).read(key, print)) == 1


def test_the_vendors_own_cache_gives_an_empty_one_for_bytes_that_it_cannot_read() -> None:
    """TensorRT for RTX shares the code, and runs here; that its cache does nothing is why it is not used."""
    trt = pytest.importorskip("tensorrt_rtx")
    from tasks.backends.trt.callbacks import process_logger
    from tasks.backends.trt.timing import load_cache, serialized_size

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        config = trt.Builder(process_logger(trt)).create_builder_config()
        assert serialized_size(config.create_timing_cache(b"")) > 0
        assert load_cache(config, b"rubbish") is None
        assert load_cache(config, b"") is None
