"""Write the rows and the checkpoint of recipes/digits-vit.yaml: the scans of digits/make.py, and a small ViT for them.

A vision transformer without any pretraining learns less of 700 scans than a ResNet does.
"""

from pathlib import Path
from typing import Any

from calibration_data.digits.make import EDGE, train, write_rows
from calibration_data.making import make_into

PATCH = 4
EPOCHS, LEARNING_RATE = 30, 2e-3


def make_vit(**names: Any) -> Any:
    """Return a ViT of 4 layers and 64 patches, not trained."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            image_size=EDGE, patch_size=PATCH, hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
            intermediate_size=128, **names,
        )
    )  # fmt: skip


def make(rows: Path, checkpoint: Path) -> str:
    """Write both, and say how good the checkpoint is."""
    write_rows(rows)
    accuracy = train(rows, checkpoint, epochs=EPOCHS, rate=LEARNING_RATE, make_network=make_vit)
    return f"{accuracy:.1%} of the evaluation rows in PyTorch"


if __name__ == "__main__":
    make_into(Path(".enginery/digits-vit"), __doc__, make)
