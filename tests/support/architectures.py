"""Tiny random networks of the architectures that fold windows, frames or patches into their batch, as ONNX graphs."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch

from registry.records import OnnxArtifact, Precision
from tasks.graphs.files import make_artifact, write_graph

ATTENTION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VIDEO = {"image_size": 16, "patch_size": 8, "num_frames": 4, **ATTENTION}
Shape = tuple[int, ...]


def _make(name: str, head: str, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name + head)(getattr(transformers, f"{name}Config")(**settings))

    return make


# The network, the shape of a row, and the fields of its output that are the graph's outputs.
ARCHITECTURES: Mapping[str, tuple[Callable[[], Any], Shape, tuple[str, ...]]] = {
    "swin": (
        _make("Swin", "ForImageClassification", image_size=32, patch_size=2, embed_dim=16, depths=[2, 2],
              num_heads=[2, 4], window_size=4),
        (3, 32, 32), ("logits",),
    ),
    "vit": (_make("ViT", "ForImageClassification", image_size=32, patch_size=4, **ATTENTION), (3, 32, 32), ("logits",)),
    "convnext": (
        _make("ConvNext", "ForImageClassification", hidden_sizes=[16, 32, 32, 32], depths=[1, 1, 1, 1]),
        (3, 32, 32), ("logits",),
    ),
    "mobilenet": (_make("MobileNetV2", "ForImageClassification", image_size=32), (3, 32, 32), ("logits",)),
    "segformer": (
        _make("Segformer", "ForSemanticSegmentation", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1],
              num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=16),
        (3, 64, 64), ("logits",),
    ),
    "videomae": (_make("VideoMAE", "ForVideoClassification", **VIDEO), (4, 3, 16, 16), ("logits",)),
    "timesformer": (_make("Timesformer", "ForVideoClassification", **VIDEO), (4, 3, 16, 16), ("logits",)),
    "yolos": (
        _make("Yolos", "ForObjectDetection", image_size=[32, 32], patch_size=8, num_detection_tokens=5, **ATTENTION),
        (3, 32, 32), ("logits", "pred_boxes"),
    ),
    "wav2vec2": (
        _make("Wav2Vec2", "ForCTC", conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8),
              num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, **ATTENTION),
        (800,), ("logits",),
    ),
}  # fmt: skip


class _Fields(torch.nn.Module):
    def __init__(self, network: Any, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.fields = network, fields

    def forward(self, row: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.network(row)
        return tuple(outputs[field] for field in self.fields)


def export_architecture(name: str, folder: Path) -> OnnxArtifact:
    """Save the graph of a random network with a dynamic batch; its input is called "row"."""
    make, shape, fields = ARCHITECTURES[name]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.onnx.export(
            _Fields(make().eval(), fields),
            (torch.randn(2, *shape),),
            folder / "exported.onnx",
            input_names=["row"],
            output_names=list(fields),
            dynamic_axes={each: {0: "batch"} for each in ("row", *fields)},
            opset_version=18,
            dynamo=False,
        )
    (folder / "source").mkdir()
    write_graph(onnx.load(folder / "exported.onnx"), folder / "source")
    return make_artifact(folder / "source", Precision.FP32)
