"""Engines that a release reuses from the registry: those that a trusted key signed, and no others."""

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
from tests.support.publisher import Publisher, make_publisher


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
    build = reuse_published(_make_context(mlflow_store, publisher, lambda: publisher.trust, []), engine, into)
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
    assert reuse_published(_make_context(mlflow_store, publisher, trust, sentences), engine, into) is None
    assert list(into.iterdir()) == []
    assert sentences[0].startswith("rebuilding instead of reusing sst2 version 1: ")


def test_an_unsigned_engine_is_not_reused(
    mlflow_store: MlflowStore, manifest_factory: Any, publisher: Publisher, tmp_path: Path
) -> None:
    engine = mlflow_store.publish(*manifest_factory(b"plan"))
    (into := tmp_path / "into").mkdir()
    assert reuse_published(_make_context(mlflow_store, publisher, lambda: publisher.trust, []), engine, into) is None
