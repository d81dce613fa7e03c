"""A tiny real text classifier in a bundle with golden inputs, and what changes between publisher and host."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.bundle.manifest import MANIFEST_FILE, UNLISTED, read_manifest, verify_bundle, write_manifest
from registry.digest import record_tree
from registry.records import EngineManifest, largest_axes
from tasks.backends import open_engine
from tasks.bundle.golden import GOLDEN_FILE, Golden, parse_golden, write_golden
from tasks.bundle.record_golden import record_golden
from tasks.measurement.machine import this_machine
from tasks.model_tasks import model_task
from tests.support.triton_bundles import write_bundle

TEXTS = ("good", "the bad film", "fine music for the library and the editor")


def add_golden(bundle: Path, inputs: Sequence[Any] = TEXTS) -> Golden:
    """Run inputs through a bundle's engine, and put them into the bundle with what it answers."""
    manifest = verify_bundle(bundle)
    build, task = replace(manifest.build, directory=bundle), model_task(manifest.source.task)
    encoder = task.open_encoder(bundle, build.input_names, largest_axes(build.profiles))
    golden = record_golden(open_engine(build), task, encoder, inputs, build=build, machine=this_machine())
    assert golden is not None
    write_golden(golden, bundle)
    reseal(bundle)
    return golden


def reseal(bundle: Path, **changes: Any) -> EngineManifest:
    """Write the manifest of a bundle for the files that it holds now; its build lists its engine's."""
    old = read_manifest((bundle / MANIFEST_FILE).read_bytes())
    files = tuple(record for record in record_tree(bundle) if record.path not in UNLISTED)
    engine = next(record for record in files if record.path == old.build.file)
    build = replace(old.build, files=(engine,), digest=engine.sha256, size_bytes=engine.size_bytes, **changes)
    manifest = replace(old, files=files, build=build)
    (bundle / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    return manifest


def golden_bundle(folder: Path) -> tuple[Path, EngineManifest]:
    """Write a bundle with golden inputs."""
    bundle = write_bundle(folder)
    add_golden(bundle)
    return bundle, verify_bundle(bundle)


def edit_golden(bundle: Path, edit: Callable[[Golden], Golden]) -> EngineManifest:
    """Change the golden inputs of a bundle, as another publisher would have written them."""
    write_golden(edit(parse_golden((bundle / GOLDEN_FILE).read_bytes(), GOLDEN_FILE)), bundle)
    return reseal(bundle)
