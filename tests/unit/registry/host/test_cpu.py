"""Which instruction set a CPU has, and who is told that an engine was judged on another kind."""

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.host import cpu
from registry.host.compatibility import note_other_cpu
from registry.host.cpu import Cpu, read_cpu
from registry.records import Backend, EngineManifest, GpuTarget, Machine

INFO = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\nmodel name\t: B\nflags\t\t: fpu\n"


@pytest.mark.parametrize(
    ("flags", "instruction_set", "is_exact"),
    [
        ("fpu avx avx2 avx512f avx512_vnni", "avx512-vnni", True),
        ("fpu avx avx2 avx_vnni", "avx-vnni", True),
        ("fpu avx avx2 avx512f", "avx512", False),
        ("fpu avx avx2", "avx2", False),
        ("fpu sse4_2", "sse4.2", False),
        ("fpu", "x86_64", False),
    ],
)
def test_a_cpu_is_known_by_its_widest_instruction_set(
    flags: str, instruction_set: str, is_exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(INFO.format(flags=flags), encoding="utf-8")
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    found = read_cpu()
    assert found == Cpu("A CPU", instruction_set)
    assert found.adds_int8_exactly is is_exact


def test_another_architecture_is_known_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert read_cpu().instruction_set == "aarch64"
    assert read_cpu().adds_int8_exactly


def judged_on(manifest: EngineManifest, instruction_set: str | None, subject: str = "engine") -> EngineManifest:
    machine = Machine("x86", 2, instruction_set=instruction_set)
    build = replace(manifest.build, backend=Backend.ONNXRUNTIME, target=GpuTarget("cpu", Backend.ONNXRUNTIME))
    figures = tuple(replace(each, measured_on=machine, subject=subject) for each in manifest.measurements)
    return replace(manifest, build=build, measurements=figures)


def test_a_host_that_adds_int8_otherwise_is_told(manifest_factory: Any) -> None:
    manifest, _ = manifest_factory()
    with_vnni, without = judged_on(manifest, "avx512-vnni"), judged_on(manifest, "avx2")
    note = note_other_cpu(with_vnni, Cpu("old", "avx2"))
    assert note is not None
    assert note.startswith("judged on a CPU with avx512-vnni, this one has avx2")
    assert note_other_cpu(without, Cpu("new", "avx-vnni")) is not None
    assert note_other_cpu(with_vnni, Cpu("other", "avx-vnni")) is None
    assert note_other_cpu(without, Cpu("other", "avx512")) is None


def test_nobody_is_told_of_what_was_not_looked_at(manifest_factory: Any) -> None:
    manifest, _ = manifest_factory()
    old = Cpu("old", "avx2")
    assert note_other_cpu(judged_on(manifest, None), old) is None
    assert note_other_cpu(judged_on(manifest, "avx512-vnni", subject="onnx-graph"), old) is None
    assert note_other_cpu(manifest, old) is None
