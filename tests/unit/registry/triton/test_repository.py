"""Triton's model repository: what config.pbtxt says, what is refused, and that nothing half-written is ever visible."""

import array
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import ModelConfig

from registry.bundle.manifest import MANIFEST_FILE, read_manifest, write_manifest
from registry.digest import record_file
from registry.errors import BadInput, DigestMismatch, EngineryError, Incompatible
from registry.records import AxisRange, Backend, GpuTarget, ShapeProfile, SourceFiles, Tensor
from registry.triton.config import config_text
from registry.triton.model import BUNDLE_FOLDER, TritonModel, WarmupRow, check_servable
from registry.triton.repository import CONFIG_FILE, WARMUP_FOLDER, PlacedModel, place_triton, prune, restore
from registry.triton.warmup import ROWS_FILE, holds_inputs
from tasks.bundle.assemble import add_warmup
from tests.support.tiny import SPECIAL, WORDS
from tests.support.triton_bundles import CPU, L4, PROFILE, TEXT_MODEL, verified, write_bundle

B200 = GpuTarget("b200", Backend.TENSORRT, "10.0", "NVIDIA B200")
RTX = GpuTarget("rtx", Backend.TENSORRT_RTX, "8.9", "NVIDIA GeForce RTX 4090")
ROW = WarmupRow("good music", (("input_ids", (2, 5, 12, 3)), ("attention_mask", (1, 1, 1, 1))))


def profile(batch: tuple[int, int, int], sequence: tuple[int, int, int]) -> ShapeProfile:
    return ShapeProfile.of(batch=AxisRange(*batch), sequence=AxisRange(*sequence))


def config_of(placed: PlacedModel) -> Any:
    return text_format.Parse((placed.folder / CONFIG_FILE).read_bytes(), ModelConfig())


def place_plan(tmp_path: Path, *profiles: ShapeProfile, rows: tuple[WarmupRow, ...] = ()) -> PlacedModel:
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan", profiles=profiles, rows=rows)
    return place_triton([verified(bundle)], tmp_path / "repository", version=7)


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_one_number_a_row_is_reshaped_because_triton_refuses_a_tensor_without_dims(tmp_path: Path) -> None:
    manifest = read_manifest((write_bundle(tmp_path / "bundle", L4, engine=b"plan") / MANIFEST_FILE).read_bytes())
    length, count = Tensor("length", "int64", ("batch",)), Tensor("count", "float32", ("batch",))
    inputs, outputs = (*manifest.build.inputs, length), (*manifest.build.outputs, count)
    speech = replace(manifest, build=replace(manifest.build, inputs=inputs, outputs=outputs))
    config = text_format.Parse(config_text(TritonModel((speech,), 1)), ModelConfig())
    for described in (config.input[-1], config.output[-1]):
        assert list(described.dims) == [1]
        assert described.HasField("reshape")
        assert list(described.reshape.shape) == []
    assert not config.input[0].HasField("reshape")


def test_an_engine_of_one_batch_is_served_with_all_its_axes(tmp_path: Path) -> None:
    target = GpuTarget("cpu", Backend.ONNXRUNTIME)
    manifest = read_manifest((write_bundle(tmp_path / "bundle", target) / MANIFEST_FILE).read_bytes())
    inputs, outputs = (
        tuple(replace(tensor, shape=(4, *tensor.shape[1:])) for tensor in tensors)
        for tensors in (manifest.build.inputs, manifest.build.outputs)
    )
    only = ShapeProfile.of(batch=AxisRange(4, 4, 4), sequence=AxisRange(1, 4, 8))
    build = replace(manifest.build, inputs=inputs, outputs=outputs, profiles=(only,))
    model = TritonModel((replace(manifest, build=build),), 1)
    check_servable(model, None)
    config = text_format.Parse(config_text(model), ModelConfig())
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, -1]
    assert not config.HasField("dynamic_batching")
    assert not holds_inputs(build)


def test_a_tensorrt_model_says_what_the_manifest_says(tmp_path: Path) -> None:
    placed = place_plan(tmp_path, PROFILE)
    config = config_of(placed)
    assert (config.name, config.backend, config.max_batch_size) == ("opinions", "tensorrt", 8)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [
        ("input_ids", [-1]),
        ("attention_mask", [-1]),
    ]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("logits", [2])]
    assert list(config.version_policy.specific.versions) == [7]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.optimization.cuda.graphs
    assert [(spec.batch_size, list(spec.input["input_ids"].dim)) for spec in config.optimization.cuda.graph_spec] == [
        (4, [8])
    ]
    assert config.parameters["enginery_digest"].string_value == placed.digest
    assert config.parameters["enginery_release"].string_value == "r1"
    assert config.parameters["enginery_precision"].string_value == "fp32"
    assert (placed.folder / "7" / "model.plan").read_bytes() == b"plan"
    assert (placed.folder / config.output[0].label_filename).read_text() == "negative\npositive\n"


def test_one_instance_group_lists_every_profile(tmp_path: Path) -> None:
    config = config_of(place_plan(tmp_path, PROFILE, profile((1, 16, 64), (16, 32, 128))))
    assert [list(group.profile) for group in config.instance_group] == [["0", "1"]]


@pytest.mark.parametrize(
    ("profiles", "largest"),
    [
        ([profile((1, 1, 1), (1, 8, 64)), profile((1, 8, 32), (1, 8, 64))], 32),
        ([profile((1, 4, 8), (2, 8, 16)), profile((1, 16, 64), (16, 32, 128))], 8),
        ([profile((1, 1, 1), (1, 8, 64)), profile((8, 8, 32), (1, 8, 64))], 1),
        ([profile((1, 8, 64), (1, 5, 10)), profile((1, 4, 8), (1, 9, 30)), profile((1, 8, 64), (20, 25, 30))], 8),
    ],
    ids=["same lengths", "other lengths", "a gap between batches", "a narrow place between"],
)
def test_batches_never_exceed_the_profiles_of_any_length(
    tmp_path: Path, profiles: list[ShapeProfile], largest: int
) -> None:
    config = config_of(place_plan(tmp_path, *profiles))
    assert config.max_batch_size == largest
    sizes = [
        *config.dynamic_batching.preferred_batch_size,
        *(s.batch_size for s in config.optimization.cuda.graph_spec),
    ]
    assert max(sizes) <= largest


def test_a_model_without_profiles_is_not_batched(tmp_path: Path) -> None:
    config = config_of(place_plan(tmp_path))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1, -1]
    assert not config.HasField("dynamic_batching")


def test_warmup_is_the_tokens_of_rows_that_fit_a_profile(tmp_path: Path) -> None:
    long = WarmupRow("long", tuple((name, (1,) * 99) for name in ("input_ids", "attention_mask")))
    placed = place_plan(tmp_path, PROFILE, rows=(ROW, long))
    (warmup,) = config_of(placed).model_warmup
    assert warmup.batch_size == 4
    file = placed.folder / WARMUP_FOLDER / warmup.inputs["input_ids"].input_data_file
    assert array.array("q", file.read_bytes()).tolist() == [2, 5, 12, 3]
    assert list(warmup.inputs["input_ids"].dims) == [4]


def test_a_row_without_an_inputs_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no values for input input_ids"):
        place_plan(tmp_path, PROFILE, rows=(WarmupRow("only text"),))


def with_rows(bundle: Path, raw: bytes) -> Path:
    (bundle / ROWS_FILE).write_bytes(raw)
    manifest = read_manifest((bundle / "manifest.json").read_bytes())
    files = (*manifest.files, record_file(bundle / ROWS_FILE, root=bundle))
    (bundle / "manifest.json").write_bytes(write_manifest(replace(manifest, files=files)))
    return bundle


def test_a_bundle_brings_its_own_rows(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan")
    manifest = read_manifest((bundle / "manifest.json").read_bytes())
    source = SourceFiles(manifest.source, "d" * 64, (), bundle)
    add_warmup(manifest.build, source, ["good music", "the bad film", "fine", "poor"], tmp_path)
    with_rows(bundle, (tmp_path / ROWS_FILE).read_bytes())
    placed = place_triton([verified(bundle)], tmp_path / "repository", version=1)
    assert len(config_of(placed).model_warmup) == 4
    file = placed.folder / WARMUP_FOLDER / config_of(placed).model_warmup[0].inputs["input_ids"].input_data_file
    ids = [(SPECIAL + WORDS).index(word) for word in ("[CLS]", "good", "music", "[SEP]")]
    assert array.array("q", file.read_bytes()).tolist() == ids


def test_a_bundle_of_images_brings_no_rows_and_is_served(tmp_path: Path) -> None:
    """Warm-up rows hold whole numbers, and an image has too many to write down."""
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan")
    manifest = read_manifest((bundle / "manifest.json").read_bytes())
    pixels = Tensor("pixel_values", "float32", ("batch_size", 3, 16, 16))
    profiles = (ShapeProfile.of(batch=AxisRange(1, 8, 32)),)
    logits = Tensor("logits", "float32", ("batch_size", 2))
    build = replace(manifest.build, inputs=(pixels,), outputs=(logits,), profiles=profiles)
    source = SourceFiles(replace(manifest.source, task="image-classification"), "d" * 64, (), bundle)
    add_warmup(build, source, [b"an image"], tmp_path)
    assert not (tmp_path / ROWS_FILE).exists()
    (bundle / "manifest.json").write_bytes(write_manifest(replace(manifest, source=source.source, build=build)))
    config = config_of(place_triton([verified(bundle)], tmp_path / "repository", version=1))
    assert list(config.input[0].dims) == [3, 16, 16]
    assert (config.max_batch_size, list(config.model_warmup)) == (32, [])


@pytest.mark.parametrize("raw", [b"", b"{}", b'[{"text": 1}]', b'[{"text": "a", "tokens": [["input_ids", [1.5]]]}]'])
def test_malformed_rows_are_refused(tmp_path: Path, raw: bytes) -> None:
    bundle = with_rows(write_bundle(tmp_path / "bundle", L4, engine=b"plan"), raw)
    with pytest.raises(BadInput, match=r"warmup\.json holds no rows"):
        place_triton([verified(bundle)], tmp_path / "repository", version=1)


def test_pruning_keeps_the_placed_version(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan", rows=[ROW])
    for version in (9, 10, 11, 12, 1):
        placed = place_triton([verified(bundle)], tmp_path / "repository", version=version)
    prune(placed, 2)
    assert sorted(path.name for path in placed.folder.iterdir() if path.is_dir()) == ["1", "11", "12", "warmup"]
    beside = {path.name.split("-")[0] for path in (placed.folder / WARMUP_FOLDER).iterdir()}
    assert beside == {"1", "11", "12"}
    assert {path.name for path in placed.folder.glob("labels-*")} == {f"labels-{n}.txt" for n in (1, 11, 12)}


def test_engines_for_two_gpus_share_a_version_by_compute_capability(tmp_path: Path) -> None:
    bundles = [write_bundle(tmp_path / t.name, t, engine=t.name.encode()) for t in (L4, B200)]
    placed = place_triton([verified(bundle) for bundle in bundles], tmp_path / "repository", version=1)
    config = config_of(placed)
    assert dict(config.cc_model_filenames) == {"8.9": "sm89.plan", "10.0": "sm100.plan"}
    for capability, name in config.cc_model_filenames.items():
        digest = config.parameters[f"enginery_digest_{capability}"].string_value
        engine = (placed.folder / "1" / name).read_bytes()
        assert digest == read_manifest((bundles[engine == b"b200"] / "manifest.json").read_bytes()).build.digest


def test_engines_that_differ_in_more_than_the_gpu_are_not_placed_together(tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "one", L4, engine=b"1")
    other = write_bundle(tmp_path / "other", B200, engine=b"2", labels=("no", "yes"))
    with pytest.raises(Incompatible, match="may differ in compute capability only"):
        place_triton([verified(one), verified(other)], tmp_path / "repository", version=1)
    with pytest.raises(Incompatible, match="two engines for one compute capability"):
        place_triton([verified(one), verified(one)], tmp_path / "repository", version=1)


def test_engine_that_triton_cannot_serve_is_refused(tmp_path: Path) -> None:
    rtx = write_bundle(tmp_path / "rtx", RTX, engine=b"plan")
    with pytest.raises(Incompatible, match="no backend for TensorRT for RTX"):
        place_triton([verified(rtx)], tmp_path / "repository", version=1)
    plan = write_bundle(tmp_path / "plan", L4, engine=b"plan")
    with pytest.raises(Incompatible, match="engines for CPUs only"):
        place_triton([verified(plan)], tmp_path / "repository", version=1, python_model=TEXT_MODEL)
    with pytest.raises(Incompatible, match="takes no batch of 1"):
        place_plan(tmp_path, profile((2, 4, 8), (1, 8, 64)))
    with pytest.raises(BadInput, match="count from 1"):
        place_triton([verified(plan)], tmp_path / "repository", version=0)
    assert not (tmp_path / "repository").exists()


def test_a_container_with_another_tensorrt_is_refused_with_the_right_one(tmp_path: Path) -> None:
    plan = write_bundle(tmp_path / "plan", L4, engine=b"plan")
    with pytest.raises(Incompatible, match=r"26\.07 carries TensorRT 11\.1\.0\.106.*tritonserver:26\.08-py3"):
        place_triton([verified(plan)], tmp_path / "repository", version=1, container="26.07")
    assert place_triton([verified(plan)], tmp_path / "repository", version=1, container="26.08").version == 1


def test_a_label_with_a_line_break_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan", labels=("no\nyes", "positive"))
    with pytest.raises(BadInput, match="not a printable line"):
        place_triton([verified(bundle)], tmp_path / "repository", version=1)


def test_a_dtype_that_triton_lacks_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan")
    manifest = read_manifest((bundle / "manifest.json").read_bytes())
    strange = replace(manifest.build, outputs=(replace(manifest.build.outputs[0], dtype="complex64"),))
    (bundle / "manifest.json").write_bytes(write_manifest(replace(manifest, build=strange)))
    with pytest.raises(BadInput, match="logits is complex64"):
        place_triton([verified(bundle)], tmp_path / "repository", version=1)


def test_a_damaged_bundle_is_not_placed(tmp_path: Path) -> None:
    bundle = verified(write_bundle(tmp_path / "bundle", L4, engine=b"plan"))
    (bundle.folder / "engine.plan").write_bytes(b"PLAN")
    with pytest.raises(DigestMismatch):
        place_triton([bundle], tmp_path / "repository", version=1)
    (bundle.folder / "engine.plan").unlink()
    with pytest.raises(EngineryError, match="cannot place"):
        place_triton([bundle], tmp_path / "repository", version=1)
    assert list((tmp_path / "repository").iterdir()) == []


def test_a_manifest_that_is_swapped_after_it_was_verified_is_never_read(tmp_path: Path) -> None:
    bundle = verified(write_bundle(tmp_path / "bundle", labels=("no", "yes")))
    (bundle.folder / MANIFEST_FILE).write_bytes(write_manifest(replace(bundle.manifest, model="other")))
    placed = place_triton([bundle], tmp_path / "repository", version=1, python_model=TEXT_MODEL)
    assert placed.model == "opinions"
    assert (placed.folder / "1" / BUNDLE_FOLDER / MANIFEST_FILE).read_bytes() == write_manifest(bundle.manifest)


def test_warm_up_rows_that_are_swapped_after_they_were_verified_are_refused(tmp_path: Path) -> None:
    bundle = verified(write_bundle(tmp_path / "bundle", L4, engine=b"plan", rows=(ROW,)))
    (bundle.folder / ROWS_FILE).write_bytes(b"[]")
    with pytest.raises(DigestMismatch, match="changed since it was verified"):
        place_triton([bundle], tmp_path / "repository", version=1)


def test_placing_again_changes_nothing(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan", rows=[ROW])
    first = place_triton([verified(bundle)], tmp_path / "repository", version=1)
    before = (first.folder / CONFIG_FILE).stat()
    again = place_triton([verified(bundle)], tmp_path / "repository", version=1)
    assert (first.reused, again.reused) == (False, True)
    assert (again.folder / CONFIG_FILE).stat() == before


def test_a_placed_engine_that_was_changed_is_replaced(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan")
    placed = place_triton([verified(bundle)], tmp_path / "repository", version=1)
    (placed.folder / "1" / "model.plan").write_bytes(b"tampered")
    assert not place_triton([verified(bundle)], tmp_path / "repository", version=1).reused
    assert (placed.folder / "1" / "model.plan").read_bytes() == b"plan"


def test_restore_brings_back_the_previous_version(tmp_path: Path) -> None:
    old, new = (write_bundle(tmp_path / str(i), L4, engine=str(i).encode(), sequence=i) for i in (1, 2))
    first = place_triton([verified(old)], tmp_path / "repository", version=1)
    before = (first.folder / CONFIG_FILE).read_bytes()
    second = place_triton([verified(new)], tmp_path / "repository", version=2)
    assert list(config_of(second).version_policy.specific.versions) == [2]
    restore(second)
    assert (first.folder / CONFIG_FILE).read_bytes() == before
    restore(first)
    assert list((tmp_path / "repository").iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        None,
        b'name: "opinions"\n',
        b'name: "opinions"  # migrated from a model with enginery_digest\n',
        b'name: "opinions"\nparameters { key: "note" value { string_value: "no enginery_digest" } }\n',
        b'name: "opinions"\na_field_of_a_newer_triton: 3\n',
        b"enginery_digest {",
        b"\xff\xfeenginery_digest",
    ],
    ids=["none", "plain", "comment", "value", "newer", "broken", "bytes"],
)
def test_a_model_that_enginery_did_not_place_is_kept(config: bytes | None, tmp_path: Path) -> None:
    theirs = tmp_path / "repository" / "opinions"
    theirs.mkdir(parents=True)
    if config is not None:
        (theirs / CONFIG_FILE).write_bytes(config)
    before = snapshot(theirs)
    bundle = write_bundle(tmp_path / "bundle", L4, engine=b"plan")
    with pytest.raises(BadInput, match="was not placed by Enginery"):
        place_triton([verified(bundle)], tmp_path / "repository", version=1)
    assert snapshot(theirs) == before


def test_full_disk_at_any_write_leaves_the_served_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (write_bundle(tmp_path / str(i), L4, engine=str(i).encode(), sequence=i, rows=[ROW]) for i in (1, 2))
    repository = tmp_path / "repository"
    served = snapshot(place_triton([verified(old)], repository, version=1).folder)
    real, remaining = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal remaining
        if remaining == 0:
            raise OSError(28, "No space left on device")
        remaining -= 1
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    failures = 0
    for writes in range(1000):
        remaining = writes
        try:
            place_triton([verified(new)], repository, version=2)
            break
        except EngineryError as error:
            assert "No space left" in str(error)  # noqa: PT017  # the loop ends with the first success
            failures += 1
        now = snapshot(repository / "opinions")
        if now[CONFIG_FILE] == served[CONFIG_FILE]:
            assert {name: now[name] for name in served} == served
        else:
            assert now["2/model.plan"] == b"2"
        assert [path.name for path in repository.iterdir()] == ["opinions"]
    assert failures > 3
    assert not [path for path in tmp_path.iterdir() if "incoming" in path.name]


def test_the_python_model_lies_beside_the_bundle_that_it_answers_with(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", CPU, rows=[ROW])
    placed = place_triton([verified(bundle)], tmp_path / "repository", version=1, python_model=TEXT_MODEL)
    assert {path.name for path in (placed.folder / "1").iterdir()} == {"model.py", "enginery.zip", BUNDLE_FOLDER}
    assert snapshot(placed.folder / "1" / BUNDLE_FOLDER) == snapshot(bundle)
    (warmup,) = config_of(placed).model_warmup
    stored = (placed.folder / WARMUP_FOLDER / warmup.inputs["text"].input_data_file).read_bytes()
    assert stored == b"\x0a\x00\x00\x00good music"
