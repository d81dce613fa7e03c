"""A bundle for the CPU of a tiny random checkpoint of each model task, with warm-up rows and golden inputs."""

from contextlib import chdir
from pathlib import Path

from flows.inputs.recipe import load_recipe
from flows.inputs.rows import evaluation_rows
from registry.bundle.manifest import MANIFEST_FILE, write_manifest
from registry.records import NEW_TOKENS
from tasks.backends import BuildInputs, open_engine
from tasks.backends.build import build_engine
from tasks.bundle.assemble import add_warmup, assemble_bundle, make_manifest
from tasks.bundle.golden import write_golden
from tasks.bundle.record_golden import choose_inputs, record_golden
from tasks.checkpoints.source import from_folder
from tasks.execution.progress import ignore_progress
from tasks.generation.export import export_parts
from tasks.graphs.export import export_checkpoint
from tasks.measurement.machine import this_machine
from tests.support.task_recipes import write_task_recipe
from tests.support.triton_bundles import CPU

WARMUP_ROWS = 2
GOLDEN_ROWS = 6


def write_task_bundle(folder: Path, task: str) -> Path:
    """Write the bundle under `folder`: what a release of the tiny recipe in fp32 publishes, but measured and signed."""
    recipe = load_recipe(write_task_recipe(folder / "recipe", task).recipe)
    source = from_folder(folder / "recipe" / "checkpoint", name="tiny", task=task, into=folder / "source")
    with chdir(folder / "recipe"):
        rows = evaluation_rows(recipe, source.source)
    export = export_parts if NEW_TOKENS in recipe.model_task.axes else export_checkpoint
    inputs = BuildInputs(export(source, into=folder / "onnx"), CPU, recipe.shape_profiles, 2**26)
    build = build_engine(inputs, into=folder / "engine", on_progress=ignore_progress)
    (bundle := folder / "bundle").mkdir()
    assemble_bundle(build, source, bundle)
    add_warmup(build, source, rows.inputs[:WARMUP_ROWS], bundle)
    encoder = recipe.model_task.open_encoder(bundle, build.input_names, recipe.largest)
    chosen = choose_inputs(rows.inputs, GOLDEN_ROWS)
    golden = record_golden(open_engine(build), recipe.model_task, encoder, chosen, build=build, machine=this_machine())
    assert golden is not None
    write_golden(golden, bundle)
    manifest = make_manifest(
        build,
        source,
        bundle=bundle,
        release="tiny-1",
        sequence=1,
        calibration=None,
        evaluation_set=rows.digest,
        measurements=(),
        gates=(),
        created_at="2026-11-27T10:00:00+00:00",
    )
    (bundle / MANIFEST_FILE).write_bytes(write_manifest(manifest))
    return bundle
