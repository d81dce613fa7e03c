"""Write the rows and the checkpoint of recipes/spoken-digits.yaml: what espeak-ng says, a Wav2Vec2 for it.

The voices, speeds and pitches of the three splits are different: what is judged was said by voices that nothing was
trained or calibrated on. espeak-ng is a Debian package; the same version of it writes the same files.
"""

import io
import itertools
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration_data.making import make_into
from registry.errors import BadInput

SEED = 20261126
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
# Variants of a voice (men, women), words a minute, and pitches from 0 to 99.
SPLITS = {
    "fit": (("m1", "m2", "m3", "m4", "f1", "f2"), (130, 160, 190), (35, 60)),
    "calibration": (("m5", "f5"), (120, 145, 175), (40, 55)),
    "evaluation": (("m6", "m7", "f3", "f4"), (140, 170, 200), (30, 50)),
}
RATE = 16_000
EPOCHS, BATCH_ROWS, LEARNING_RATE = 14, 16, 1.5e-3


def write_rows(folder: Path) -> None:
    """Write fit.parquet, calibration.parquet and evaluation.parquet: columns `audio` and `label`.

    Raises:
        BadInput: espeak-ng is not installed.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    features = datasets.Features(
        {"audio": datasets.Audio(decode=False), "label": datasets.ClassLabel(names=list(CLASSES))}
    )
    for split, (variants, speeds, pitches) in SPLITS.items():
        said = list(itertools.product(range(len(CLASSES)), ACCENTS, variants, speeds, pitches))
        with ThreadPoolExecutor(2) as pool:
            files = list(pool.map(lambda each: say(CLASSES[each[0]], *each[1:]), said))
        # What two settings say alike stands there once.
        rows = dict(zip(files, (digit for digit, *_ in said), strict=True))
        media = [{"bytes": content, "path": None} for content in rows]
        table = pyarrow.table({"audio": media, "label": list(rows.values())}, schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")


def say(text: str, accent: str, variant: str, speed: int, pitch: int) -> bytes:
    """Return what espeak-ng says, as a WAV file.

    Raises:
        BadInput: it is not installed.
    """
    voice = ["-v", f"{accent}+{variant}", "-s", str(speed), "-p", str(pitch)]
    try:
        said = subprocess.run(["espeak-ng", *voice, "--stdout", text], capture_output=True, check=True)
    except FileNotFoundError:
        raise BadInput("espeak-ng is not installed: apt-get install espeak-ng") from None
    return said.stdout


def decode(content: bytes) -> NDArray[np.float32]:
    """Return what was said at RATE, as a release reads it (tasks/model_tasks/inputs/audio.py), float32 [samples]."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    resampled: NDArray[np.float32] = soxr.resample(samples, rate, RATE)
    return resampled


def train(rows: Path, folder: Path, *, epochs: int = EPOCHS) -> float:
    """Train a Wav2Vec2 on fit.parquet, save it with its extractor, and return its accuracy on evaluation."""
    import torch
    from datasets import Audio, Dataset
    from torch.nn import functional
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE)

    def read(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        table = Dataset.from_parquet(str(rows / f"{split}.parquet"), keep_in_memory=True)
        media = table.cast_column("audio", Audio(decode=False))["audio"]
        samples = [extractor(decode(each["bytes"]), sampling_rate=RATE)["input_values"][0] for each in media]
        padded = torch.zeros(len(samples), max(map(len, samples)))
        for row, values in zip(padded, samples, strict=True):
            row[: len(values)] = torch.from_numpy(values)
        return padded, torch.tensor(list(table["label"]))

    torch.manual_seed(SEED)
    names = dict(enumerate(CLASSES))
    network = Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            feat_extract_norm="layer", do_stable_layer_norm=True,
            conv_dim=[32, 48, 64], conv_kernel=[64, 8, 4], conv_stride=[20, 4, 4], num_feat_extract_layers=3,
            num_conv_pos_embeddings=15, num_conv_pos_embedding_groups=4, classifier_proj_size=64,
            apply_spec_augment=False, layerdrop=0.0, hidden_dropout=0.0, attention_dropout=0.0, feat_proj_dropout=0.0,
            id2label=names, label2id={name: number for number, name in names.items()},
        )
    )  # fmt: skip
    samples, labels = read("fit")
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    steps = epochs * -(-len(labels) // BATCH_ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    # Threads that wait for each other cost more than they give on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(labels)), BATCH_ROWS):
            loss = functional.cross_entropy(network(samples[batch]).logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    torch.set_num_threads(threads)
    network.eval()
    network.save_pretrained(folder)
    extractor.save_pretrained(folder)
    samples, labels = read("evaluation")
    with torch.inference_mode():
        found = torch.cat([network(part).logits.argmax(-1) for part in torch.split(samples, BATCH_ROWS)])
    return float((found == labels).float().mean())


def make(rows: Path, checkpoint: Path) -> str:
    """Write both, and say how good the checkpoint is."""
    write_rows(rows)
    return f"{train(rows, checkpoint):.1%} of the evaluation rows in PyTorch"


if __name__ == "__main__":
    make_into(Path(".enginery/spoken-digits"), __doc__, make)
