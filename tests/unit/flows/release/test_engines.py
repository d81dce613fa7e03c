"""Engines that a release reuses from the registry: those that a trusted key signed, and no others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.release.context import ReleaseContext
from flows.release.engines import reuse_published
from flows.release.progress import lines_report
from registry.bundle.signing import Trust
from registry.digest import file_sha256
from registry.errors import BadInput
from registry.mlflow.store import MlflowStore
from registry.records import Backend, EngineVersion, GpuTarget
from tests.support.publisher import Publisher, make_publisher

TARGET = GpuTarget("edge-l4", Backend.TENSORRT, "8.9")


def _no_key() -> Trust:
    raise BadInput("there is no key to verify engines with")


def _make_context(store: MlflowStore, publisher: Publisher, trust: Any, sentences: list[str]) -> ReleaseContext:
    unused: Any = None
    return ReleaseContext(unused, unused, lines_report(sentences.append), store, publisher.signer, trust)


def test_an_engine_signed_by_a_trusted_key_is_reused(
    mlflow_store: MlflowStore, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    engine = publisher.publish(mlflow_store, manifest_factory(b"plan"))
    (into := tmp_path / "into").mkdir()
    context = _make_context(mlflow_store, publisher, lambda: publisher.trust, [])
    build = reuse_published(context, engine, TARGET, engine.build_key, into)
    assert build is not None
    assert build.files[0].sha256 == file_sha256(into / build.file)


@pytest.mark.parametrize("stranger", [True, False])
def test_an_engine_signed_by_a_stranger_is_not_reused(
    stranger: bool, mlflow_store: MlflowStore, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    engine = publisher.publish(mlflow_store, manifest_factory(b"plan"))
    other = make_publisher(tmp_path / "other").trust
    sentences: list[str] = []
    (into := tmp_path / "into").mkdir()
    trust = (lambda: other) if stranger else _no_key
    context = _make_context(mlflow_store, publisher, trust, sentences)
    assert reuse_published(context, engine, TARGET, engine.build_key, into) is None
    assert list(into.iterdir()) == []
    assert sentences[0].startswith("rebuilding instead of reusing sst2 version 1: ")


def test_an_unsigned_engine_is_not_reused(
    mlflow_store: MlflowStore, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    engine = mlflow_store.publish(*manifest_factory(b"plan"))
    (into := tmp_path / "into").mkdir()
    context = _make_context(mlflow_store, publisher, lambda: publisher.trust, [])
    assert reuse_published(context, engine, TARGET, engine.build_key, into) is None


@pytest.mark.parametrize(
    ("edit", "target", "key"),
    [
        (lambda row: row, TARGET, "f" * 64),
        (lambda row: replace(row, build_key="f" * 64), TARGET, "f" * 64),
        (lambda row: row, replace(TARGET, compute_capability="9.0"), None),
        (lambda row: row, GpuTarget("cpu", Backend.ONNXRUNTIME), None),
        (lambda row: replace(row, target="other"), TARGET, None),
    ],
)
def test_an_engine_of_another_build_or_gpu_is_not_reused(
    edit: Callable[[EngineVersion], EngineVersion],
    target: GpuTarget,
    key: str | None,
    mlflow_store: MlflowStore,
    manifest_factory: Any,
    publisher: Publisher,
    tmp_path: Path,
) -> None:
    engine = publisher.publish(mlflow_store, manifest_factory(b"plan"))
    sentences: list[str] = []
    context = _make_context(mlflow_store, publisher, lambda: publisher.trust, sentences)
    (into := tmp_path / "into").mkdir()
    assert reuse_published(context, edit(engine), target, key or engine.build_key, into) is None
    assert list(into.iterdir()) == []
    assert "do not trust it" in sentences[0] or "was changed after publishing" in sentences[0]
