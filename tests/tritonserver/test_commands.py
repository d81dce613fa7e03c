"""The commands of `enginery triton`, and a watch that hands each version to a running server through `place`."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tritonclient.grpc import InferenceServerClient

from flows.cli import app, run_command
from flows.commands.triton import HEADER_VARIABLE, TritonOptions, place_and_load, place_command, triton_folders
from registry.bundle.manifest import MANIFEST_FILE, read_manifest, verify_bundle
from registry.bundle.signing import local_signer, sign_bundle
from registry.errors import BadInput, SignatureInvalid, TornBundle
from registry.promotion.promote import promote
from registry.serving.fetch import Fetched
from registry.serving.watch import Followed, Watch, follow
from tests.support.deciding import ANA
from tests.support.memory_store import MemoryStore
from tests.support.triton_bundles import write_bundle
from tests.support.triton_server import SECRET, Running
from tests.tritonserver.test_text_model import TEXTS, ask


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINERY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(HEADER_VARIABLE, SECRET)


@pytest.fixture
def emptied(server: Running) -> Iterator[Running]:
    yield server
    for folder in server.repository.iterdir():
        server.unload(folder.name)
        shutil.rmtree(folder)


def signed(tmp_path: Path, version: int, *, engine: bytes | None = None) -> Fetched:
    folder = tmp_path / "bundles" / "opinions" / str(version)
    write_bundle(folder, sequence=version, engine=engine, labels=("no", "yes"))
    sign_bundle(folder, local_signer(tmp_path / "home"))
    return Fetched(folder, version, reused=False, manifest=verify_bundle(folder))


def test_placing_reports_the_folder_and_the_server(
    emptied: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched = signed(tmp_path, 1)
    options = TritonOptions(python_backend=True, server=emptied.address)
    place_and_load("opinions", 1, [fetched.path], emptied.repository, options, as_json=True)
    placed = json.loads(capsys.readouterr().out)
    assert (placed["model"], placed["version"], placed["loaded"], placed["path"]) == (
        "opinions",
        1,
        True,
        str(emptied.repository / "opinions"),
    )


def test_an_unsigned_bundle_or_one_of_another_model_is_not_placed(tmp_path: Path) -> None:
    fetched = signed(tmp_path, 1)
    with pytest.raises(BadInput, match="belongs to model opinions, not other"):
        place_and_load("other", 1, [fetched.path], tmp_path / "repository", TritonOptions(), as_json=False)
    (fetched.path / "model.sig").unlink()
    with pytest.raises((SignatureInvalid, TornBundle)):
        place_and_load("opinions", 1, [fetched.path], tmp_path / "repository", TritonOptions(), as_json=False)
    assert not (tmp_path / "repository").exists()


def test_watch_loads_a_version_and_rolls_back_one_that_does_not_load(emptied: Running, tmp_path: Path) -> None:
    options = Watch(hook=place_command(emptied.repository, TritonOptions(python_backend=True, server=emptied.address)))
    model_folder = tmp_path / "bundles" / "opinions"
    good, broken = signed(tmp_path, 1), signed(tmp_path, 2, engine=b"no graph")
    assert follow(good, model_folder, options) == Followed(1)
    assert follow(broken, model_folder, options) == Followed(1, refused=2)
    assert emptied.ready_versions("opinions") == [1]
    with InferenceServerClient(emptied.address) as client:
        assert ask(client, TEXTS[:1])[0][0] == "yes"


def test_bundles_and_repository_lie_apart() -> None:
    bundles, repository = triton_folders(Path("/models"))
    assert repository not in bundles.parents
    assert bundles not in repository.parents


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """A registry with one signed engine, which the command line reads."""
    store = MemoryStore()
    bundle = signed(tmp_path, 1).path
    store.publish(read_manifest((bundle / MANIFEST_FILE).read_bytes()), bundle)
    promote(store, "opinions", {"cpu": 1}, replace(ANA, waiver="a test"), {})
    monkeypatch.setattr("registry.mlflow.quick.open.open_to_read", lambda: store)
    return store


def enginery(*arguments: object) -> int:
    return run_command(lambda: app([str(argument) for argument in arguments], standalone_mode=False))


def test_triton_fetch_places_and_loads(emptied: Running, registry: MemoryStore) -> None:
    to = emptied.repository.parent
    options = ("--python-backend", "--server", emptied.address, "--target", "cpu")
    for _ in range(2):
        assert enginery("triton", "fetch", "opinions", "--to", to, *options) == 0
        assert emptied.ready_versions("opinions") == [1]
    with InferenceServerClient(emptied.address) as client:
        assert ask(client, TEXTS[:1])[0][0] == "yes"


def test_unknown_container_is_refused_before_the_download(
    registry: MemoryStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("triton", "fetch", "opinions", "--to", tmp_path / "to", "--container", "99.01")
    assert enginery(*command) == BadInput.exit_code
    assert "is not known" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
