"""A fetch killed, starved or lied to at any step shows nothing half-made, and the next one goes on."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from registry.errors import DigestMismatch, EngineryError, Interrupted, NotFound, Replayed, SignatureInvalid, TornBundle
from registry.fetch import Policy, fetch, verify_placed
from registry.mlflow_store import MlflowStore
from registry.placed import read_record
from registry.signing import Signer, Trust
from registry.store import Store
from tests.publisher import HOST, Publisher, make_publisher
from tests.unit.memory_store import MemorySource, MemoryStore

ENGINE = os.urandom(200_000)
# Every way in which a fetch changes the disk, or waits for it.
STEPS = {
    os: ("open", "pwrite", "write", "ftruncate", "fsync", "preadv", "fchmod"),
    Path: ("rename", "write_bytes", "mkdir", "chmod", "unlink"),
}


def dies_at(nth: int, fetching: Callable[[], object]) -> bool:
    """Whether a process of its own, killed -9 before the n-th step of `fetching`, died; else it was done before."""
    child = os.fork()
    if child == 0:
        steps = count(1)

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if next(steps) == nth:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        try:
            for owner, names in STEPS.items():
                for name in names:
                    setattr(owner, name, dying(getattr(owner, name)))
            fetching()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.fixture
def in_memory(memory_store: MemoryStore, manifest_factory: Any, publisher: Publisher) -> MemoryStore:
    """Two releases without a database, which a fork would share with its parent."""
    for number in (1, 2):
        publisher.publish(memory_store, manifest_factory(ENGINE + bytes([number]), sequence=number))
    return memory_store


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.download.SEGMENT_BYTES", 64 * 1024)


@pytest.fixture
def registry(mlflow_store: MlflowStore, manifest_factory: Any, publisher: Publisher) -> MlflowStore:
    """Two releases on SQLite and a folder."""
    for number in (1, 2):
        publisher.publish(mlflow_store, manifest_factory(ENGINE + bytes([number]), sequence=number))
    return mlflow_store


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    # In memory where the machine has such a place: hundreds of fetches wait for each of their writes to be durable.
    memory = Path("/dev/shm")  # noqa: S108  # a folder of its own is made there
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder) / "models"


def visible(models: Path) -> list[str]:
    return sorted(path.name for path in (models / "sst2").glob("*") if not path.name.startswith("."))


def hidden(models: Path) -> list[str]:
    return sorted(path.name for path in (models / "sst2").glob(".*"))


def assert_goes_on(store: Store, models: Path, publisher: Publisher, version: int = 1) -> None:
    """The next fetch succeeds, and leaves nothing behind of what went wrong."""
    fetched = fetch(store, "sst2", version=version, into=models, policy=publisher.policy)
    assert verify_placed(fetched.path, publisher.trust).sequence == version
    assert hidden(models) == [".placed.json"]


@pytest.mark.long
def test_a_fetch_killed_before_any_of_its_steps_shows_a_whole_bundle_or_none(
    in_memory: MemoryStore, publisher: Publisher, models: Path, small_segments: None
) -> None:
    def get() -> None:
        fetch(in_memory, "sst2", version=2, into=models, policy=publisher.policy)

    fetch(in_memory, "sst2", version=1, into=models, policy=publisher.policy)
    for nth in count(1):
        died = dies_at(nth, get)
        assert visible(models) in (["1"], ["1", "2"]), nth
        for version in visible(models):
            verify_placed(models / "sst2" / version, publisher.trust)
        assert_goes_on(in_memory, models, publisher, 2)
        if not died:
            break
        shutil.rmtree(models / "sst2" / "2")
    assert nth > 50


def test_a_replacement_killed_at_any_step_is_mended(in_memory: MemoryStore, publisher: Publisher, models: Path) -> None:
    def get() -> None:
        fetch(in_memory, "sst2", version=1, into=models, policy=publisher.policy)

    for nth in count(1, 7):
        get()
        (models / "sst2" / "1" / "engine.plan").write_bytes(b"damaged")
        died = dies_at(nth, get)
        assert_goes_on(in_memory, models, publisher)
        if not died:
            break


def test_what_arrived_before_a_kill_is_not_read_again(
    in_memory: MemoryStore, publisher: Publisher, models: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get() -> None:
        fetch(in_memory, "sst2", version=1, into=models, policy=publisher.policy)

    def arrived() -> int:
        return sum(path.read_text().count("engine.plan") for path in (models / "sst2").glob("*.journal"))

    for nth in count(10):
        assert dies_at(nth, get)
        if 1 < arrived() < 4:
            break
        shutil.rmtree(models)
    there, asked, real = arrived(), [], MemorySource.read

    def read(self: MemorySource, path: str, start: int = 0, stop: int | None = None) -> Any:
        asked.append(path)
        return real(self, path, start, stop)

    monkeypatch.setattr(MemorySource, "read", read)
    assert_goes_on(in_memory, models, publisher)
    assert asked.count("engine.plan") == 4 - there


def stored(registry: MlflowStore, tmp_path: Path) -> Path:
    """The bundle of version 1 in the registry's own folder."""
    run = registry.client.get_run(str(registry.client.get_model_version("sst2", "1").run_id))
    return Path(run.info.artifact_uri.removeprefix("file://")) / "bundle"


def replace_by(content: bytes) -> Callable[[Path], object]:
    return lambda bundle: (bundle / "engine.plan").write_bytes(content)


def put_pipe(bundle: Path) -> None:
    (bundle / "engine.plan").unlink()
    os.mkfifo(bundle / "engine.plan")


SPOILED: dict[str, tuple[Callable[[Path], object], type[EngineryError]]] = {
    "flipped": (replace_by(ENGINE[:-1] + bytes([ENGINE[-1] ^ 1]) + b"\1"), DigestMismatch),
    "truncated": (replace_by(ENGINE[:1000]), TornBundle),
    "emptied": (replace_by(b""), TornBundle),
    "longer": (replace_by(ENGINE + b"\1!"), TornBundle),
    "removed": (lambda bundle: (bundle / "engine.plan").unlink(), NotFound),
    "a pipe": (put_pipe, TornBundle),
    "another manifest": (lambda bundle: (bundle / "manifest.json").write_bytes(b"{}"), DigestMismatch),
    "huge manifest": (lambda bundle: os.truncate(bundle / "manifest.json", 2**30), EngineryError),
    "another signature": (lambda bundle: (bundle / "model.sig").write_bytes(b"{}"), SignatureInvalid),
    "no signature": (lambda bundle: (bundle / "model.sig").unlink(), SignatureInvalid),
}


@pytest.mark.parametrize(("spoil", "error"), SPOILED.values(), ids=SPOILED.keys())
def test_what_was_spoiled_in_the_registry_is_refused_and_mended_by_what_comes_back(
    spoil: Callable[[Path], object],
    error: type[EngineryError],
    registry: MlflowStore,
    publisher: Publisher,
    tmp_path: Path,
    models: Path,
) -> None:
    bundle = stored(registry, tmp_path)
    shutil.copytree(bundle, tmp_path / "kept")
    spoil(bundle)
    with pytest.raises(error):
        fetch(registry, "sst2", version=1, into=models, policy=publisher.policy)
    assert visible(models) == []
    shutil.rmtree(bundle)
    shutil.copytree(tmp_path / "kept", bundle)
    assert_goes_on(registry, models, publisher)


def test_what_is_beside_a_bundle_or_shares_its_bytes_in_the_registry_does_not_reach_a_host(
    registry: MlflowStore, publisher: Publisher, tmp_path: Path, models: Path
) -> None:
    bundle = stored(registry, tmp_path)
    (bundle / "evil.so").write_bytes(b"")
    (bundle / ".hidden").write_bytes(b"")
    os.link(bundle / "engine.plan", tmp_path / "outside")
    fetched = fetch(registry, "sst2", version=1, into=models, policy=publisher.policy)
    with (tmp_path / "outside").open("r+b") as shared:
        shared.write(b"changed")
    verify_placed(fetched.path, publisher.trust)


def test_a_replayed_old_release_is_refused_whatever_the_clock_says(
    registry: MlflowStore, publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.set_alias("sst2", "production-l4", 2)
    fetch(registry, "sst2", alias="production-l4", into=models, policy=publisher.policy)
    registry.set_alias("sst2", "production-l4", 1)
    monkeypatch.setattr("time.time", lambda: 0.0)
    with pytest.raises(Replayed):
        fetch(registry, "sst2", alias="production-l4", into=models, policy=publisher.policy)
    assert visible(models) == ["2"]


def test_a_clock_set_back_changes_nothing(
    registry: MlflowStore, publisher: Publisher, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert_goes_on(registry, models, publisher)
    for path in (models / "sst2" / "1").rglob("*"):
        os.utime(path, (0, 0))
    assert fetch(registry, "sst2", version=1, into=models, policy=publisher.policy).reused


def test_a_signature_of_somebody_else_is_refused(
    registry: MlflowStore, publisher: Publisher, tmp_path: Path, models: Path
) -> None:
    stranger = make_publisher(tmp_path / "stranger")
    with pytest.raises(SignatureInvalid):
        fetch(registry, "sst2", version=1, into=models, policy=stranger.policy)
    assert visible(models) == []
    assert_goes_on(registry, models, publisher)


def certified(folder: Path, begins: datetime, days: int) -> Publisher:
    """A publisher whose certificate begins then, and is its own root."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "publisher")])
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(
            x509.KeyUsage(True, key_cert_sign=True, crl_sign=False, encipher_only=False, decipher_only=False, **usage),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, form, plain))
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    return Publisher(Signer(folder / "key.pem", folder / "cert.pem"), Trust(roots=(folder / "cert.pem",)))


def test_a_certificate_that_expired_is_refused(
    mlflow_store: MlflowStore, manifest_factory: Any, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    expired = certified(tmp_path / "expired", now - timedelta(days=30), days=20)
    valid = certified(tmp_path / "valid", now - timedelta(days=1), days=20)
    monkeypatch.setattr("registry.signing.check_certificate", lambda _: None)  # it was valid when it signed
    expired.publish(mlflow_store, manifest_factory(b"one"))
    valid.publish(mlflow_store, manifest_factory(b"two", sequence=2))
    with pytest.raises(SignatureInvalid, match="expired"):
        fetch(mlflow_store, "sst2", version=1, into=models, policy=expired.policy)
    assert visible(models) == []
    assert fetch(mlflow_store, "sst2", version=2, into=models, policy=valid.policy).version == 2


def test_a_disk_that_fills_up_is_one_sentence_and_its_room_is_given_back(
    registry: MlflowStore, publisher: Publisher, models: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fetch(registry, "sst2", version=1, into=models, policy=publisher.policy)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(EngineryError, match="nothing was placed") as caught:
            fetch(registry, "sst2", version=2, into=models, policy=publisher.policy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert visible(models) == ["1"]
    assert not any((models / "sst2").glob(".partial-*/*"))
    assert_goes_on(registry, models, publisher, 2)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that the engine does not fit on."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield small
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_disk_too_small_is_refused_before_the_engine_is_read(
    registry: MlflowStore, publisher: Publisher, small: Path
) -> None:
    with pytest.raises(EngineryError, match="bytes free"):
        fetch(registry, "sst2", version=1, into=small, policy=publisher.policy)
    assert visible(small) == []


def test_a_disk_that_others_fill_in_mid_download_gets_its_room_back(
    registry: MlflowStore, publisher: Publisher, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.download._check_room", lambda *_: None)  # there was room when it was looked at
    before = shutil.disk_usage(small).free
    with pytest.raises(EngineryError, match="No space left on device"):
        fetch(registry, "sst2", version=1, into=small, policy=publisher.policy)
    assert visible(small) == []
    assert before - shutil.disk_usage(small).free < 20_000


class Flaky(BaseHTTPRequestHandler):
    """Stands in front of a real MLflow server; `faults` says what happens to the next requests for engine.plan."""

    behind: ClassVar[str] = ""
    faults: ClassVar[list[str]] = []
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        fault = self.faults.pop(0) if self.faults and self.path.endswith("engine.plan") else ""
        if fault == "503":
            self.send_error(503)
            return
        passed = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        answer = requests.get(self.behind + self.path, headers=passed, timeout=60)
        self.send_response(answer.status_code)
        for name in ("Content-Type", "Content-Length", "Content-Range", "ETag"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.end_headers()
        self.wfile.write(answer.content[:1000] if fault == "cut" else answer.content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def flaky(server_uri: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("registry.download._PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("registry.download.SEGMENT_BYTES", 64 * 1024)
    monkeypatch.setattr(Flaky, "behind", server_uri)
    monkeypatch.setattr(Flaky, "faults", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_a_server_that_fails_in_mid_download_is_asked_again_and_then_left_for_the_next_fetch(
    fault: str, flaky: str, server_uri: str, manifest_factory: Any, publisher: Publisher, tmp_path: Path, models: Path
) -> None:
    publisher.publish(MlflowStore(server_uri, tmp_path / "state"), manifest_factory(ENGINE, model="sst2"))
    version = MlflowStore(server_uri, tmp_path / "state").versions("sst2")[-1].version
    store = MlflowStore(flaky, tmp_path / "state")
    Flaky.faults[:] = [fault] * 99
    with pytest.raises(Interrupted):
        fetch(store, "sst2", version=version, into=models, policy=publisher.policy)
    assert visible(models) == []
    Flaky.faults[:] = [fault] * 2
    fetched = fetch(store, "sst2", version=version, into=models, policy=publisher.policy)
    assert (fetched.path / "engine.plan").read_bytes() == ENGINE
    assert read_record(models / "sst2").newest_sequence("l4") == 1


def test_a_registry_that_is_down_leaves_what_is_in_place(
    registry: MlflowStore, publisher: Publisher, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    fetched = fetch(registry, "sst2", version=1, into=models, policy=publisher.policy)
    nobody = MlflowStore("http://127.0.0.1:9", tmp_path / "state")
    with pytest.raises(EngineryError):
        fetch(nobody, "sst2", version=2, into=models, policy=Policy(publisher.trust, HOST))
    verify_placed(fetched.path, publisher.trust)
