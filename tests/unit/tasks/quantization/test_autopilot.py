"""The autopilot: blocks that do harm stay fp32, and no more of them than the gate needs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from registry.errors import BadInput
from registry.records import Precision
from tasks.graphs.layers import Floats, Graph
from tasks.model_tasks.inputs.texts import TextEncoder
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tasks.quantization import qdq
from tasks.quantization.autopilot import CHOICE_FILE, COMPENSATED, NEAREST, Choice, choose_mix, from_json, to_json
from tasks.quantization.blocks import compute_int8_share
from tasks.quantization.holdout import Holdout, MetricGate, Score, rows_to_prove
from tasks.quantization.int8 import make_int8_graph
from tasks.quantization.quantize import quantize
from tasks.quantization.request import Int8Plan
from tasks.report.figures import draw_int8_trade_off
from tests.support.encoder_graphs import artifact
from tests.support.outlier_networks import NETWORKS
from tests.support.quantized_networks import CalibratedNetwork, ErrorGate, measure_int8_loss, run_model

ROUNDED = {NEAREST: qdq.round_int8_weight}


def test_the_harmful_block_alone_stays_fp32(bert: CalibratedNetwork) -> None:
    harmful = list(bert.scales)[-1]
    coarse = replace(bert.scales[harmful], scale=bert.scales[harmful].scale * 40)
    scales = bert.scales | {harmful: coarse}
    mix, choice = choose_mix(bert.file, scales, ROUNDED, Holdout(bert.held_out, ErrorGate(2 * measure_int8_loss(bert))))
    assert choice.passed
    assert choice.kept == (harmful,)
    assert max(choice.blocks, key=lambda block: block.damage or 0).tensor == harmful
    assert {layer.input for layer in Graph(mix).list_linears()} == {harmful}
    assert choice.int8_share == pytest.approx(compute_int8_share(choice.blocks, {harmful}))


def test_the_chosen_graph_passes_the_gate_on_the_holdout(network: CalibratedNetwork) -> None:
    gate = ErrorGate(measure_int8_loss(network) / 3)
    mix, choice = choose_mix(network.file, network.scales, ROUNDED, Holdout(network.held_out, gate))
    assert choice.passed
    assert 0 < len(choice.kept) < len(network.scales)
    assert 0 < choice.int8_share < 1
    exact, mixed = ([[output] for output in run_model(model, network.held_out)] for model in (network.load(), mix))
    assert gate.score(exact, mixed).passed
    assert choice.path[-1].passed
    assert not choice.path[0].passed


def test_a_graph_that_passes_stays_all_int8(bert: CalibratedNetwork) -> None:
    mix, choice = choose_mix(bert.file, bert.scales, ROUNDED, Holdout(bert.held_out, ErrorGate(1.0)))
    assert (choice.passed, choice.kept, choice.int8_share, len(choice.path)) == (True, (), 1.0, 1)
    assert mix == make_int8_graph(bert.load(), bert.scales)


def test_when_no_mix_passes_the_choice_fails_and_the_graph_is_all_int8(bert: CalibratedNetwork) -> None:
    mix, choice = choose_mix(bert.file, bert.scales, ROUNDED, Holdout(bert.held_out, ErrorGate(-1.0)))
    assert not choice.passed
    assert choice.kept == ()
    assert "no mix" in choice.in_words
    assert mix == make_int8_graph(bert.load(), bert.scales)


def test_compensated_weights_are_tried_before_anything_stays_fp32(bert: CalibratedNetwork, tmp_path: Path) -> None:
    source, rows = artifact(tmp_path / "fp32", bert.load()), NETWORKS["bert"].make_rows(48, 1)
    plan = Int8Plan(holdout=Holdout(bert.held_out, ErrorGate(1e-9)))
    mix = quantize(source, Precision.INT8, rows, calibration_set_digest="c" * 64, into=tmp_path / "int8", plan=plan)
    choice = from_json((mix.directory / CHOICE_FILE).read_bytes())
    assert [tried.rounding for tried in choice.path[:3]] == [NEAREST, COMPENSATED, COMPENSATED]
    assert [tried.kept for tried in choice.path[:2]] == [0, 0]


def test_the_choice_is_not_part_of_the_artifact(bert: CalibratedNetwork, tmp_path: Path) -> None:
    source, rows = artifact(tmp_path / "fp32", bert.load()), NETWORKS["bert"].make_rows(48, 1)
    plans = {"without": Int8Plan(), "with": Int8Plan(holdout=Holdout(bert.held_out, ErrorGate(1.0)))}
    mix = {
        name: quantize(source, Precision.INT8, rows, calibration_set_digest="c" * 64, into=tmp_path / name, plan=plan)
        for name, plan in plans.items()
    }
    assert mix["with"].digest == mix["without"].digest
    assert (tmp_path / "with" / CHOICE_FILE).is_file()
    assert not (tmp_path / "without" / CHOICE_FILE).exists()


def make_gate(labels: tuple[int, ...], limit: float, sizes: tuple[int, ...] = ()) -> MetricGate:
    """Make the gate of text classification, which needs neither texts nor an encoder for its answers."""
    batches = tuple(("a text",) * size for size in sizes or (len(labels),))
    return MetricGate(TEXT_CLASSIFICATION, TextEncoder(Tokenizer(WordLevel()), ()), batches, labels, limit)


def judge(gate: MetricGate, exact: list[Floats], made: list[Floats]) -> Score:
    kept = ([gate.keep(at, [logits]) for at, logits in enumerate(each)] for each in (exact, made))
    return gate.score(*kept)


def test_the_accuracy_gate_is_that_of_a_release() -> None:
    exact = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 100]
    labels = tuple([0, 1, 2, 3] * 100)
    gate = make_gate(labels, 0.02)
    assert judge(gate, [exact], [exact]).passed
    wrong = exact.copy()
    wrong[:30] = np.roll(wrong[:30], 1, axis=1)
    score = judge(make_gate(labels, 0.02, (200, 200)), [exact[:200], exact[200:]], [wrong[:200], wrong[200:]])
    assert score.loss == pytest.approx(30 / 400)
    assert not score.passed
    assert not judge(gate, [exact], [exact * np.nan]).passed


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.5, 1.0])
def test_the_fewest_rows_that_could_prove_a_loss_are_named(limit: float) -> None:
    fewest = rows_to_prove(limit)
    assert make_gate(tuple([0] * fewest), limit).provable
    assert fewest == 1 or not make_gate(tuple([0] * (fewest - 1)), limit).provable


def test_another_row_label_or_limit_is_another_holdout(bert: CalibratedNetwork) -> None:
    labels = tuple(range(len(bert.held_out)))
    one = Holdout(bert.held_out, make_gate(labels, 0.5))
    others = [
        Holdout(bert.held_out[:-1], make_gate(labels, 0.5)),
        Holdout(bert.held_out, make_gate(labels[::-1], 0.5)),
        Holdout(bert.held_out, make_gate(labels, 0.4)),
        Holdout(bert.held_out, make_gate(labels, 0.5), ("other",)),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
    assert one.digest == Holdout(tuple(dict(feed) for feed in bert.held_out), make_gate(labels, 0.5)).digest


@pytest.fixture(scope="module")
def mixed(bert: CalibratedNetwork) -> Choice:
    harmful = list(bert.scales)[-1]
    scales = bert.scales | {harmful: replace(bert.scales[harmful], scale=bert.scales[harmful].scale * 40)}
    return choose_mix(bert.file, scales, ROUNDED, Holdout(bert.held_out, ErrorGate(2 * measure_int8_loss(bert))))[1]


def test_a_choice_survives_writing_and_reading(mixed: Choice) -> None:
    assert from_json(to_json(mixed)) == mixed


@pytest.mark.parametrize(
    "broken",
    [
        lambda document: document | {"kept": "all"},
        lambda document: document | {"int8_share": None},
        lambda document: {key: value for key, value in document.items() if key != "path"},
        lambda document: [document],
    ],
)
def test_json_that_is_not_a_choice_is_refused(mixed: Choice, broken: Callable[[object], object]) -> None:
    with pytest.raises(BadInput, match="quantize again"):
        from_json(json.dumps(broken(json.loads(to_json(mixed)))).encode())


def test_the_figure_of_a_choice_is_a_picture(mixed: Choice, tmp_path: Path) -> None:
    assert draw_int8_trade_off(mixed, tmp_path / "int8.png").read_bytes().startswith(b"\x89PNG")
