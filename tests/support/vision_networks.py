"""Small random networks with the operators that decoders, upsamplers and trackers have, as ONNX graphs."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn import functional

from registry.records import OnnxArtifact, Precision
from tasks.graphs.files import make_artifact, write_graph

EDGE = 12


class Concat(nn.Module):
    """Branches of very different scales, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.joined = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(16, 8, 3)

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 8]."""
        return self.joined(torch.cat([self.one(row) * 10, self.other(row) * 0.05], 1)).mean((2, 3))


class Upsampler(nn.Module):
    """A ConvTranspose between convolutions, in groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=groups)
        self.last = nn.Conv2d(8, 4, 3)

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 4]."""
        return self.last(functional.relu(self.up(functional.relu(self.down(row))))).mean((2, 3))


class Warp(nn.Module):
    """A GridSample whose grid is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.offsets, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 3)

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 4]."""
        features = self.features(row)
        grid = torch.tanh(self.offsets(features)).permute(0, 2, 3, 1)
        return self.last(functional.grid_sample(features, grid, align_corners=False)).mean((2, 3))


class Slopes(nn.Module):
    """A PReLU with a slope a channel, and one with a single slope."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 4, 3), nn.PReLU())

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 4]."""
        return self.layers(row).mean((2, 3))


class Grouped(nn.Module):
    """Depthwise and grouped convolutions with relu6 between them."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 8, 3, groups=4))
        self.layers = nn.Sequential(*(layer for each in convolutions for layer in (each, nn.ReLU6())))

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 8]."""
        return self.layers(row).mean((2, 3))


class Shared(nn.Module):
    """A weight that two layers read, one of them turned round, and a bias that an Add reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 8, 3), nn.Linear(8, 8)

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 8]."""
        pooled = self.first(row).mean((2, 3)) + self.first.bias
        return self.twice(functional.linear(3 * pooled, self.twice.weight.t()))


class Unfolded(nn.Module):
    """A dilated convolution, a BatchNormalization behind an interpolation, so that nothing folds it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, dilation=2, bias=False), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 3)
        self.norm.running_mean, self.norm.running_var = torch.randn(8), torch.rand(8) + 0.5

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 4]."""
        wide = functional.interpolate(self.first(row), scale_factor=2.0, mode="bilinear")
        return self.last(functional.hardswish(self.norm(wide))).mean((2, 3))


class Ranks(nn.Module):
    """Convolutions over one and three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.volume = nn.Conv1d(3, 4, 5), nn.Conv3d(1, 4, 3)

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 4]."""
        return self.line(row.flatten(2)).mean(2) + self.volume(row.unsqueeze(1)).mean((2, 3, 4))


class OnlyTransposes(nn.Module):
    """Nothing but ConvTransposes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.ConvTranspose2d(3, 8, 4, stride=2), nn.ConvTranspose2d(8, 3, 2)

    def forward(self, row: torch.Tensor) -> Any:
        """Return [batch, 3]."""
        return self.other(functional.relu(self.one(row))).mean((2, 3))


NETWORKS: Mapping[str, type[nn.Module]] = {
    "concat": Concat, "warp": Warp, "slopes": Slopes, "grouped": Grouped, "shared": Shared, "unfolded": Unfolded,
    "ranks": Ranks,
}  # fmt: skip


def export_network(network: nn.Module, folder: Path) -> OnnxArtifact:
    """Save the graph of a network with a dynamic batch; its input is called "row"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.randn(2, 3, EDGE, EDGE),), folder / "exported.onnx", input_names=["row"],
            output_names=["answer"], opset_version=18, dynamo=False,
            dynamic_axes={name: {0: "batch_size"} for name in ("row", "answer")},
        )  # fmt: skip
    (folder / "fp32").mkdir()
    write_graph(onnx.load(folder / "exported.onnx"), folder / "fp32")
    return make_artifact(folder / "fp32", Precision.FP32)
