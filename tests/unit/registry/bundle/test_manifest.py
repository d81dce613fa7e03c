"""A manifest has one form in bytes, and every other is refused in one sentence."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from registry.bundle.manifest import (
    MANIFEST_FILE,
    MAX_BYTES,
    check_agrees,
    read_listed,
    read_manifest,
    verify_bundle,
    write_manifest,
)
from registry.digest import canonical_json
from registry.errors import BadInput, BadName, DigestMismatch, TornBundle
from registry.records import EngineManifest, FileRecord
from registry.store import row_of

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def manifest(manifest_factory: Any) -> EngineManifest:
    manifest: EngineManifest = manifest_factory()[0]
    return manifest


def edited(manifest: EngineManifest, edit: Edit) -> bytes:
    document = json.loads(write_manifest(manifest))
    edit(document)
    return rfc8785.dumps(document)


def test_what_is_written_is_read_back(manifest: EngineManifest) -> None:
    raw = write_manifest(manifest)
    assert read_manifest(raw) == manifest
    assert write_manifest(read_manifest(raw)) == raw


def test_machine_paths_are_in_no_json(manifest: EngineManifest) -> None:
    assert b"nowhere" not in write_manifest(manifest)
    assert b'"directory"' not in write_manifest(manifest)
    assert b"nowhere" not in canonical_json({"deep": [(manifest,)], "at": Path("/a/b")})


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda d: d.update(surprise=1), "unknown key surprise"),
        (lambda d: d["build"]["target"].update(surprise=1), "unknown key build.target.surprise"),
        (lambda d: d["files"][1].update(surprise=1), "unknown key files.1.surprise"),
        (lambda d: d["build"].update(directory="/etc"), "unknown key build.directory"),
        (lambda d: d.update(sequence="1"), "sequence"),
        (lambda d: d.update(sequence=True), "sequence"),
        (lambda d: d.update(sequence=0), "sequence"),
        (lambda d: d.pop("gates"), "gates"),
        (lambda d: d.update(verdict="fine"), "verdict"),
        (lambda d: d.update(format_version=3), "format_version 3"),
        (lambda d: d.update(format_version=True), "format_version True"),
        (lambda d: d.pop("format_version"), "format_version None"),
        (lambda d: d["build"].update(digest="g" * 64), "build.digest"),
        (lambda d: d["build"].update(build_key="A" * 64), "build.build_key"),
        (lambda d: d["build"].update(onnx_digest=""), "build.onnx_digest"),
        (lambda d: d["files"][0].update(sha256="a" * 63), "sha256 of engine.plan"),
        (lambda d: d["files"][0].update(size_bytes=-1), "size_bytes"),
        (lambda d: d["files"].append(d["files"][0]), "twice"),
        (lambda d: d["files"][0].update(path="manifest.json"), "must not be listed"),
    ],
)
def test_edited_manifest_is_refused(edit: Edit, sentence: str, manifest: EngineManifest) -> None:
    with pytest.raises(BadInput, match=sentence.replace(".", r"\.")):
        read_manifest(edited(manifest, edit))


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "a/../../up", "a\\b", "a//b", "./a", "", ".", "a\nb", "a/"])
@pytest.mark.parametrize("place", ["files", "build"])
def test_path_out_of_the_bundle_is_refused(path: str, place: str, manifest: EngineManifest) -> None:
    def edit(document: dict[str, Any]) -> None:
        files = document["files"] if place == "files" else document["build"]["files"]
        files[0]["path"] = path

    with pytest.raises(BadInput, match="file path"):
        read_manifest(edited(manifest, edit))


@pytest.mark.parametrize("name", ["../sst2", "a@b", "x\ny"])
def test_names_that_escape_are_refused(name: str, manifest: EngineManifest) -> None:
    with pytest.raises(BadName):
        read_manifest(edited(manifest, lambda d: d.update(model=name)))
    with pytest.raises(BadName):
        read_manifest(edited(manifest, lambda d: d["build"]["target"].update(name=name)))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_bytes_that_are_not_a_manifest_are_refused(raw: bytes) -> None:
    with pytest.raises(BadInput, match=r"manifest\.json is not"):
        read_manifest(raw)


def test_other_form_of_the_same_json_is_refused(manifest: EngineManifest) -> None:
    raw = write_manifest(manifest)
    for other in (raw + b"\n", json.dumps(json.loads(raw)).encode(), raw.replace(b"{", b'{"model":"x",', 1)):
        with pytest.raises(BadInput, match="canonical form"):
            read_manifest(other)


@pytest.mark.parametrize("figure", ["NaN", "Infinity", "1e999"])
def test_figure_that_is_not_a_number_is_refused(figure: str, manifest: EngineManifest) -> None:
    raw = write_manifest(manifest)
    with pytest.raises(BadInput):
        read_manifest(raw.replace(b'"build_seconds":12.5', f'"build_seconds":{figure}'.encode()))
    with pytest.raises(BadInput, match="cannot be written"):
        write_manifest(replace(manifest, build=replace(manifest.build, build_seconds=float(figure))))


def test_format_of_another_version_is_not_written(manifest: EngineManifest) -> None:
    with pytest.raises(BadInput, match="format_version"):
        write_manifest(replace(manifest, format_version=3))


def test_manifest_without_calibration_is_fine(manifest: EngineManifest) -> None:
    plain = replace(manifest, calibration_set=None)
    assert read_manifest(write_manifest(plain)) == plain


def test_calibration_files_are_checked_too(manifest: EngineManifest) -> None:
    assert manifest.calibration_set is not None
    bad = replace(manifest.calibration_set, files=(FileRecord("../x", "a" * 64, 1),))
    with pytest.raises(BadInput, match="file path"):
        write_manifest(replace(manifest, calibration_set=bad))


def test_row_that_differs_from_its_manifest_is_detected(manifest: EngineManifest) -> None:
    row = row_of(manifest, 1)
    check_agrees(row, manifest)
    with pytest.raises(DigestMismatch, match="sequence"):
        check_agrees(replace(row, sequence=5), manifest)


def test_bundle_without_a_plain_manifest_is_torn(manifest_factory: Any, tmp_path: Path) -> None:
    manifest, directory = manifest_factory()
    with pytest.raises(TornBundle, match="has no manifest"):
        verify_bundle(directory)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(write_manifest(manifest))
    (directory / MANIFEST_FILE).symlink_to(elsewhere)
    with pytest.raises(TornBundle, match="has no manifest"):
        verify_bundle(directory)


def test_a_whole_bundle_is_its_own_manifest_and_a_changed_byte_is_refused(manifest_factory: Any) -> None:
    manifest, directory = manifest_factory()
    (directory / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    assert verify_bundle(directory) == manifest
    engine = directory / manifest.build.file
    engine.write_bytes(bytes(len(engine.read_bytes())))
    with pytest.raises(DigestMismatch):
        verify_bundle(directory)


def test_manifest_too_large_is_not_read(manifest_factory: Any) -> None:
    directory = manifest_factory()[1]
    with (directory / MANIFEST_FILE).open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BadInput, match="larger"):
        verify_bundle(directory)


def test_a_manifest_of_very_many_files_is_checked_in_one_pass(manifest: EngineManifest) -> None:
    class Counted(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return str.__eq__(self, other)

    files = tuple(FileRecord(Counted(f"f{number}"), "a" * 64, 1) for number in range(2000))
    write_manifest(replace(manifest, files=files))
    assert Counted.compared < 10 * len(files)


def test_what_exported_the_graph_is_kept_and_left_out_where_nobody_said(manifest: EngineManifest) -> None:
    assert b"exporter" not in write_manifest(manifest)
    named = replace(manifest, exporter="optimum-onnx 0.1.0")
    assert b'"exporter":"optimum-onnx 0.1.0"' in write_manifest(named)
    assert read_manifest(write_manifest(named)).exporter == named.exporter


def test_a_listed_file_is_read_as_it_was_verified_or_refused(manifest_factory: Any) -> None:
    manifest, directory = manifest_factory()
    record = manifest.files[0]
    content = (directory / record.path).read_bytes()
    assert read_listed(directory, manifest, record.path, record.size_bytes) == content
    assert read_listed(directory, manifest, "not-listed.json", 100) is None
    with pytest.raises(BadInput, match=f"has {record.size_bytes} bytes, at most {record.size_bytes - 1} are read"):
        read_listed(directory, manifest, record.path, record.size_bytes - 1)
    (directory / record.path).write_bytes(content[::-1] + b"!")
    with pytest.raises(DigestMismatch, match="was changed since it was verified"):
        read_listed(directory, manifest, record.path, record.size_bytes)
