"""Calibrated networks, a gate of relative error, and a way to run graphs: what tests of int8 mixes share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from tasks.calibration.collect import calibrate
from tasks.calibration.rows import Feed
from tasks.graphs.layers import Floats, Graph
from tasks.graphs.session import exact_options
from tasks.quantization.holdout import Outputs, Score
from tasks.quantization.int8 import make_int8_graph
from tasks.quantization.scales import ActivationScale, choose_scales
from tests.support.outlier_networks import NETWORKS


@dataclass(frozen=True)
class ErrorGate:
    """Relative squared error of the answers, at most `limit`."""

    limit: float
    digest: str = "error"

    def keep(self, _at: int, outputs: Outputs) -> Outputs:
        return outputs

    def score(self, exact: Sequence[Outputs], made: Sequence[Outputs]) -> Score:
        loss = float(np.mean([self.damage(0, *pair) for pair in zip(exact, made, strict=True)]))
        return Score(loss, loss, loss <= self.limit)

    def damage(self, _at: int, exact: Outputs, made: Outputs) -> float:
        return float(np.square(made[0] - exact[0]).sum() / np.square(exact[0]).sum())


@dataclass(frozen=True)
class CalibratedNetwork:
    """An fp32 graph in a file, its int8 scales, and rows that they were not calibrated on."""

    file: Path
    scales: dict[str, ActivationScale]
    held_out: tuple[Feed, ...]

    def load(self) -> onnx.ModelProto:
        return onnx.load(self.file)


def calibrate_network(name: str, folder: Path) -> CalibratedNetwork:
    """Write one of NETWORKS to `folder`, and calibrate it."""
    network = NETWORKS[name]
    file = folder / "fp32.onnx"
    onnx.save(network.make_model(), file)
    scales = choose_scales(Graph(onnx.load(file)), calibrate(file, network.make_rows(48, 1)), alphas=(0.5, 0.8))
    return CalibratedNetwork(file, scales, tuple(network.make_rows(12, 2)))


def run_model(model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[Floats]:
    """Return the first output for each feed."""
    session = ort.InferenceSession(model.SerializeToString(), exact_options(), providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in feeds]


def measure_int8_loss(network: CalibratedNetwork) -> float:
    """Return the relative squared error of the whole graph in int8."""
    whole = make_int8_graph(network.load(), network.scales)
    exact, int8 = ([[output] for output in run_model(model, network.held_out)] for model in (network.load(), whole))
    return ErrorGate(0).score(exact, int8).loss
