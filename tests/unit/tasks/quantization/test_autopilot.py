"""The autopilot: switches give what the graph gives, blocks that do harm stay fp32, and no more than the gate asks."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import BadInput
from registry.records import Precision
from tasks.calibration.collect import calibrate
from tasks.calibration.rows import Feed
from tasks.graphs.layers import Floats, Graph, groups
from tasks.graphs.session import exact_options
from tasks.model_tasks.text_classification import TEXT_CLASSIFICATION
from tasks.quantization import qdq
from tasks.quantization.autopilot import (
    CHOICE_FILE,
    COMPENSATED,
    NEAREST,
    Block,
    Choice,
    _knapsack,
    _share,
    choose,
    from_json,
    measure_macs,
    to_json,
)
from tasks.quantization.holdout import Holdout, MetricGate, Score, rows_to_prove
from tasks.quantization.int8 import int8_graph
from tasks.quantization.quantize import quantize
from tasks.quantization.request import Int8Plan
from tasks.quantization.scales import ActivationScale, choose_scales
from tasks.quantization.switches import Switchboard
from tasks.report.figures import draw_int8_trade_off
from tests.support.encoder_graphs import artifact
from tests.unit.tasks.quantization.test_quantize_networks import NETWORKS

ROUNDED = {NEAREST: qdq.int8_weight}


@dataclass(frozen=True)
class ErrorGate:
    """Relative squared error of the answers, at most `limit`."""

    limit: float
    digest: str = "error"

    def score(self, exact: Sequence[Floats], made: Sequence[Floats]) -> Score:
        lost = float(np.mean([self.damage(0, *each) for each in zip(exact, made, strict=True)]))
        return Score(lost, lost, lost <= self.limit)

    def damage(self, _at: int, exact: Floats, made: Floats) -> float:
        return float(np.square(made - exact).sum() / np.square(exact).sum())


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "Network":
    return make_network(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> "Network":
    return make_network("bert", tmp_path_factory.mktemp("one"))


@dataclass(frozen=True)
class Network:
    """An fp32 graph in a file, its int8 scales, and rows that they were not calibrated on."""

    file: Path
    scales: dict[str, ActivationScale]
    held: tuple[Feed, ...]

    @property
    def loaded(self) -> onnx.ModelProto:
        return onnx.load(self.file)


def make_network(name: str, folder: Path, alphas: tuple[float, ...] = (0.5, 0.8)) -> Network:
    make, rows, _ = NETWORKS[name]
    file = folder / "fp32.onnx"
    onnx.save(make(), file)
    scales = choose_scales(Graph(onnx.load(file)), calibrate(file, rows(48, 1)), alphas=alphas)
    return Network(file, scales, tuple(rows(12, 2)))


def run(model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[Floats]:
    session = ort.InferenceSession(model.SerializeToString(), exact_options(), providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in feeds]


def loss_of(network: Network) -> float:
    """What the whole graph in int8 loses."""
    whole = int8_graph(network.loaded, network.scales)
    return ErrorGate(0).score(run(network.loaded, network.held), run(whole, network.held)).loss


@pytest.mark.parametrize("kept", [0, 1, 2, 1000])
def test_a_switchboard_answers_as_the_graph_of_the_same_mix(network: Network, kept: int) -> None:
    board = Switchboard(network.loaded, network.scales, qdq.int8_weight)
    int8 = set(board.blocks[kept:])
    graph = int8_graph(network.loaded, {tensor: network.scales[tensor] for tensor in int8}) if int8 else network.loaded
    for feed, exact in zip(network.held, run(graph, network.held), strict=True):
        # Folding factors into a LayerNormalization moves the last bit, and with it now and then an int8 step.
        assert ErrorGate(0).damage(0, exact, board.run(feed, int8)) < (2e-4 if int8 else 1e-10)


def test_weights_that_constant_nodes_make_are_switched_too(bert: Network) -> None:
    model = bert.loaded
    weights = {each.weight for each in Graph(model).linears()}
    for tensor in [each for each in model.graph.initializer if each.name in weights]:
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
    board = Switchboard(model, bert.scales, qdq.int8_weight)
    whole = run(int8_graph(bert.loaded, bert.scales), bert.held)
    for feed, plain, int8 in zip(bert.held, run(bert.loaded, bert.held), whole, strict=True):
        assert ErrorGate(0).damage(0, plain, board.run(feed, set())) < 1e-10
        assert ErrorGate(0).damage(0, int8, board.run(feed, set(board.blocks))) < 2e-4


def test_the_block_that_does_the_harm_is_the_one_that_stays_fp32(bert: Network) -> None:
    harmful = list(bert.scales)[-1]
    coarse = replace(bert.scales[harmful], scale=bert.scales[harmful].scale * 40)
    scales = bert.scales | {harmful: coarse}
    made, choice = choose(bert.file, scales, ROUNDED, Holdout(bert.held, ErrorGate(2 * loss_of(bert))))
    assert choice.passed
    assert choice.kept == (harmful,)
    assert max(choice.blocks, key=lambda block: block.damage or 0).tensor == harmful
    left = {each.input for each in Graph(made).linears()}
    assert left == {harmful}
    assert choice.int8_share == pytest.approx(_share(choice.blocks, {harmful}))


def test_what_is_given_back_holds_the_gate_on_the_holdout(network: Network) -> None:
    exact, gate = run(network.loaded, network.held), ErrorGate(loss_of(network) / 3)
    made, choice = choose(network.file, network.scales, ROUNDED, Holdout(network.held, gate))
    assert choice.passed
    assert 0 < len(choice.kept) < len(network.scales)
    assert 0 < choice.int8_share < 1
    assert gate.score(exact, run(made, network.held)).passed
    assert choice.path[-1].passed
    assert not choice.path[0].passed


def test_a_graph_that_passes_is_left_alone(bert: Network) -> None:
    made, choice = choose(bert.file, bert.scales, ROUNDED, Holdout(bert.held, ErrorGate(1.0)))
    assert (choice.passed, choice.kept, choice.int8_share, len(choice.path)) == (True, (), 1.0, 1)
    assert made == int8_graph(bert.loaded, bert.scales)


def test_where_no_mix_passes_the_choice_says_so_and_the_graph_is_whole(bert: Network) -> None:
    made, choice = choose(bert.file, bert.scales, ROUNDED, Holdout(bert.held, ErrorGate(-1.0)))
    assert not choice.passed
    assert choice.kept == ()
    assert "no mix" in choice.in_words
    assert made == int8_graph(bert.loaded, bert.scales)


def test_compensated_weights_are_tried_before_anything_stays_fp32(bert: Network, tmp_path: Path) -> None:
    source, rows = artifact(tmp_path / "fp32", bert.loaded), NETWORKS["bert"][1](48, 1)
    plan = Int8Plan(holdout=Holdout(bert.held, ErrorGate(1e-9)))
    made = quantize(source, Precision.INT8, rows, calibration_set_digest="c" * 64, into=tmp_path / "int8", plan=plan)
    choice = from_json((made.directory / CHOICE_FILE).read_bytes())
    assert [each.rounding for each in choice.path[:3]] == [NEAREST, COMPENSATED, COMPENSATED]
    assert [each.kept for each in choice.path[:2]] == [0, 0]


def test_the_choice_beside_a_graph_is_no_file_of_the_artifact(bert: Network, tmp_path: Path) -> None:
    source, rows = artifact(tmp_path / "fp32", bert.loaded), NETWORKS["bert"][1](48, 1)
    plans = {"without": Int8Plan(), "with": Int8Plan(holdout=Holdout(bert.held, ErrorGate(1.0)))}
    made = {
        name: quantize(source, Precision.INT8, rows, calibration_set_digest="c" * 64, into=tmp_path / name, plan=plan)
        for name, plan in plans.items()
    }
    assert made["with"].digest == made["without"].digest
    assert (tmp_path / "with" / CHOICE_FILE).is_file()
    assert not (tmp_path / "without" / CHOICE_FILE).exists()


def test_macs_are_counted_as_matmul_and_conv_multiply(network: Network) -> None:
    blocks = measure_macs(network.file, network.scales, network.held[0])
    graph, feed = Graph(network.loaded), network.held[0]
    rows = len(next(iter(feed.values())))
    counted = {block.tensor: block.macs for block in blocks}
    shown = {node.output[0]: each for each, node in graph.linear_nodes().items()}
    model = network.loaded
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in shown)
    session = ort.InferenceSession(model.SerializeToString(), exact_options(), providers=["CPUExecutionProvider"])
    made = dict(zip([each.name for each in session.get_outputs()], session.run(None, feed), strict=True))
    expected = dict.fromkeys(groups(graph.linears()), 0)
    for name, each in shown.items():
        weight = graph.weight(each)
        # What is summed over for one value of the output: K, or channels of a group times the kernel.
        summed = weight.shape[0] if each.op == "MatMul" else int(np.prod(weight.shape[1:]))
        expected[each.input] += made[name].size // rows * summed
    assert counted == expected


@given(st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1)), min_size=2, max_size=12), st.data())
def test_the_knapsack_keeps_fewer_macs_and_takes_as_much_damage(
    found: list[tuple[int, float]], data: st.DataObject
) -> None:
    blocks = [Block(f"t{at}", (at,), macs, damage) for at, (macs, damage) in enumerate(found)]
    prefix = {block.tensor for block in blocks if data.draw(st.booleans())}
    kept = _knapsack(blocks, prefix)
    if kept is None:
        return
    damage = {block.tensor: block.damage or 0.0 for block in blocks}
    assert _share(blocks, kept) > _share(blocks, prefix)
    assert sum(damage[name] for name in kept) >= sum(damage[name] for name in prefix) * (1 - 1e-5)


def test_the_accuracy_gate_is_that_of_a_release() -> None:
    exact = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 100]
    labels = tuple([0, 1, 2, 3] * 100)
    gate = MetricGate(TEXT_CLASSIFICATION, labels, 0.02)
    assert gate.score([exact], [exact]).passed
    wrong = exact.copy()
    wrong[:30] = np.roll(wrong[:30], 1, axis=1)
    score = gate.score([exact[:200], exact[200:]], [wrong[:200], wrong[200:]])
    assert score.loss == pytest.approx(30 / 400)
    assert not score.passed
    assert not gate.score([exact], [exact * np.nan]).passed


@pytest.mark.parametrize("limit", [0.005, 0.01, 0.02, 0.5, 1.0])
def test_the_fewest_rows_that_could_prove_a_loss_are_named(limit: float) -> None:
    fewest = rows_to_prove(limit)
    assert MetricGate(TEXT_CLASSIFICATION, tuple([0] * fewest), limit).provable
    assert fewest == 1 or not MetricGate(TEXT_CLASSIFICATION, tuple([0] * (fewest - 1)), limit).provable


def test_another_row_label_or_limit_is_another_holdout(bert: Network) -> None:
    labels = tuple(range(len(bert.held)))
    one = Holdout(bert.held, MetricGate(TEXT_CLASSIFICATION, labels, 0.5))
    others = [
        Holdout(bert.held[:-1], MetricGate(TEXT_CLASSIFICATION, labels, 0.5)),
        Holdout(bert.held, MetricGate(TEXT_CLASSIFICATION, labels[::-1], 0.5)),
        Holdout(bert.held, MetricGate(TEXT_CLASSIFICATION, labels, 0.4)),
        Holdout(bert.held, MetricGate(TEXT_CLASSIFICATION, labels, 0.5), "other"),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
    assert (
        one.digest
        == Holdout(tuple(dict(feed) for feed in bert.held), MetricGate(TEXT_CLASSIFICATION, labels, 0.5)).digest
    )


@pytest.fixture(scope="module")
def mixed(bert: Network) -> Choice:
    harmful = list(bert.scales)[-1]
    scales = bert.scales | {harmful: replace(bert.scales[harmful], scale=bert.scales[harmful].scale * 40)}
    return choose(bert.file, scales, ROUNDED, Holdout(bert.held, ErrorGate(2 * loss_of(bert))))[1]


def test_a_choice_comes_back_as_it_was_written(mixed: Choice) -> None:
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
def test_what_is_no_choice_is_refused(mixed: Choice, broken: Callable[[object], object]) -> None:
    with pytest.raises(BadInput, match="quantize again"):
        from_json(json.dumps(broken(json.loads(to_json(mixed)))).encode())


def test_the_figure_of_a_choice_is_a_picture(mixed: Choice, tmp_path: Path) -> None:
    assert draw_int8_trade_off(mixed, tmp_path / "int8.png").read_bytes().startswith(b"\x89PNG")
