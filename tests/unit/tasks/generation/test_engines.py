"""An engine of parts is built, loaded and run as one."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.digest import digest_of
from registry.errors import BadInput, DigestMismatch, Incompatible
from registry.records import AxisRange, Backend, EngineBuild, GpuTarget, OnnxArtifact, Part, ShapeProfile, Tensor
from registry.triton.model import TritonModel, check_servable
from tasks.backends import BuildInputs, open_engine
from tasks.backends.build import build_engine, build_key
from tasks.execution.workspace import Workspace
from tasks.generation.greedy import Feed, GreedySession
from tasks.generation.parts import DECODER, ENCODER, fit_profiles
from tasks.generation.trial import open_graphs
from tests.support.manifests import make_manifest
from tests.unit.tasks.generation.conftest import Writer

pytestmark = pytest.mark.slow
PROFILE = ShapeProfile.of(batch=AxisRange(1, 2, 4), sequence=AxisRange(1, 8, 16), new_tokens=AxisRange(1, 4, 8))
CPU = GpuTarget("cpu", Backend.ONNXRUNTIME)
TEXTS = ("a good film", "the editor for music and a library", "poor music")


def build(onnx: OnnxArtifact, into: Path, target: GpuTarget = CPU, profile: ShapeProfile = PROFILE) -> EngineBuild:
    inputs = BuildInputs(onnx, target, (profile,), 2**28)
    return build_engine(inputs, into=into, on_progress=lambda _phase, _fraction: True)


def test_an_engine_of_parts_writes_what_its_graphs_write(writer: Writer, tmp_path: Path) -> None:
    built = build(writer.onnx, tmp_path)
    assert [record.path for record in built.files] == ["encoder.onnx", "decoder.onnx"]
    assert built.size_bytes == sum(record.size_bytes for record in built.files)
    session, feed = open_engine(built), writer.encoder.encode(TEXTS)
    assert session.input_names == built.input_names == ("input_ids", "attention_mask")
    assert session.output_names == tuple(tensor.name for tensor in built.outputs) == ("tokens", "log_probs")
    for made, exact in zip(session.run(feed), open_graphs(writer.onnx, 8).run(feed), strict=True):
        np.testing.assert_array_equal(made, exact)


def test_an_artifact_and_an_engine_are_the_same_when_they_are_read_again(writer: Writer, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    for value, kind in ((writer.onnx, OnnxArtifact), (build(writer.onnx, tmp_path / "engine"), EngineBuild)):

        def copy(into: Path, value: OnnxArtifact | EngineBuild = value) -> OnnxArtifact | EngineBuild:
            shutil.copytree(value.directory, into, dirs_exist_ok=True)
            return replace(value, directory=into)

        made, _ = workspace.stage(kind.__name__, 1, kind, copy)
        found, was_found = workspace.stage(kind.__name__, 1, kind, copy)
        assert was_found
        assert made == found == value
        assert all(path.is_file() for path in getattr(found, "paths", (found.path,)))


def test_an_engine_that_is_timed_writes_exactly_so_many_tokens(writer: Writer, tmp_path: Path) -> None:
    built = build(writer.onnx, tmp_path)
    feed = writer.encoder.encode(TEXTS)
    usual = open_engine(built, new_tokens=8).run(feed)[0]
    # Every first token ends its row, as a text of one token.
    assert built.generation is not None
    ended = replace(built, generation=replace(built.generation, ends=tuple(set(usual[:, 0].tolist()))))
    assert open_engine(ended).run(feed)[0].shape == (3, 1)
    exactly = open_engine(ended, new_tokens=5).run(feed)[0]
    assert exactly.tolist() == usual[:, :5].tolist()


def test_parts_of_other_bytes_than_the_engine_has_are_refused(writer: Writer, tmp_path: Path) -> None:
    built = build(writer.onnx, tmp_path)
    encoder, decoder = built.files
    swapped = (replace(encoder, sha256=decoder.sha256), replace(decoder, sha256=encoder.sha256))
    assert built.generation is not None
    alone = replace(built.generation, parts=built.generation.parts[:1])
    outside = (replace(built.generation.parts[0], file="../encoder.onnx"), built.generation.parts[1])
    for lie in (
        replace(built, files=swapped),
        replace(built, files=swapped, digest=digest_of(swapped)),
        replace(built, generation=alone),
        replace(built, generation=replace(built.generation, parts=outside)),
    ):
        with pytest.raises(DigestMismatch):
            open_engine(lie)
    (tmp_path / "decoder.onnx").write_bytes((tmp_path / "decoder.onnx").read_bytes() + b"\0")
    with pytest.raises(DigestMismatch):
        open_engine(built)


def test_what_steers_a_generation_is_part_of_its_build_key(writer: Writer) -> None:
    from tasks.generation.parts import join_graphs, split_graphs

    rules = writer.onnx.generation
    assert rules is not None
    graphs, folder = split_graphs(writer.onnx), writer.onnx.directory
    same, steered = (join_graphs(graphs, each, folder) for each in (rules, replace(rules, suppressed=(7,))))
    keys = [build_key(BuildInputs(onnx, CPU, (PROFILE,), 2**28)) for onnx in (writer.onnx, same, steered)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0"])
def test_tensorrt_builds_both_parts(writer: Writer, capability: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    built = build(writer.onnx, tmp_path, GpuTarget("gpu", Backend.TENSORRT_RTX, capability))
    assert [record.path for record in built.files] == ["encoder.plan", "decoder.plan"]
    assert built.digest == digest_of(built.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.plan", "encoder.plan"]
    assert built.generation is not None
    assert "encoder_attention_mask" in {tensor.name for tensor in built.generation.part(DECODER).inputs}


def test_a_decoder_has_a_past_of_no_tokens_up_to_all_but_the_last(writer: Writer) -> None:
    rules = writer.onnx.generation
    assert rules is not None
    prompted = replace(rules, prompt=(1, 2, 3))
    for generation, past in ((rules, AxisRange(0, 2, 7)), (prompted, AxisRange(0, 4, 9))):
        (encoder,), (decoder,) = (fit_profiles(part, generation, (PROFILE,)) for part in (ENCODER, DECODER))
        assert encoder == ShapeProfile.of(batch=AxisRange(1, 2, 4), sequence=AxisRange(1, 8, 16))
        assert decoder.axis("past") == past
    # As long a past as is said: with it the last of 8 tokens is written.
    pasts = [
        step.feed["past_key_values.0.decoder.key"].shape[2]
        for step in open_graphs(writer.onnx, 8).steps(writer.encoder.encode(TEXTS))
    ]
    assert pasts == list(range(len(pasts)))
    assert len(pasts) <= 8


def test_a_profile_of_an_axis_that_no_part_has_is_refused(writer: Writer, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="the axis height, which no input of the graph has"):
        build(writer.onnx, tmp_path, profile=ShapeProfile.of(height=AxisRange(1, 2, 4)))


def test_logits_that_are_no_number_give_a_probability_that_is_none(writer: Writer) -> None:
    class Broken:
        input_names: tuple[str, ...] = ("input_ids",)
        output_names: tuple[str, ...] = ("logits",)

        def run(self, feed: Feed) -> list[Any]:
            return [np.full((len(feed["input_ids"]), 1, 19), np.nan, dtype=np.float32)]

    whole = open_graphs(writer.onnx, 2)
    rules = replace(whole.generation, parts=(whole.generation.parts[0], Part(DECODER, "", (), ())))
    session = GreedySession({ENCODER: whole.sessions[ENCODER], DECODER: Broken()}, rules, 2)
    _, log_probs = session.run(writer.encoder.encode(TEXTS))
    assert np.isnan(log_probs).all()


def test_a_feed_without_an_input_is_refused(writer: Writer) -> None:
    feed = writer.encoder.encode(TEXTS)
    with pytest.raises(BadInput, match="needs the input attention_mask"):
        open_graphs(writer.onnx, 2).run({"input_ids": feed["input_ids"]})


def test_what_writes_text_is_served_by_the_python_backend_alone(writer: Writer) -> None:
    manifest = make_manifest(())
    tensor = Tensor("x", "int64", ("batch",))
    generation = replace(writer.onnx.generation, parts=(Part(ENCODER, "x", (tensor,), (tensor,)),))  # type: ignore[type-var]
    written = replace(manifest, build=replace(manifest.build, generation=generation))
    with pytest.raises(Incompatible, match="only Triton's Python backend does"):
        check_servable(TritonModel((written,), 1), None)
