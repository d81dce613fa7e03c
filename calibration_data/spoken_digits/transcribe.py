"""Write the rows and the checkpoint of recipes/spoken-numbers.yaml: two digits that espeak-ng says, a Whisper for them.

Voices, speeds and pitches of the splits are those of `make.py`, so what is judged was said by voices that nothing was
trained or calibrated on. It takes about four minutes on two cores.
"""

import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from calibration_data.making import make_into
from calibration_data.spoken_digits.make import ACCENTS, CLASSES, RATE, SEED, SPLITS, decode, say

# How many numbers each voice says.
NUMBERS = {"fit": 14, "calibration": 6, "evaluation": 8}
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
SECONDS, MELS = 2, 40
STEPS, BATCH_ROWS, LEARNING_RATE = 1500, 16, 1.5e-3
# Not counted by the loss.
IGNORED = -100


def write_rows(folder: Path) -> None:
    """Write fit.parquet, calibration.parquet and evaluation.parquet: columns `audio` and `transcript`.

    Raises:
        BadInput: espeak-ng is not installed.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    features = datasets.Features({"audio": datasets.Audio(decode=False), "transcript": datasets.Value("string")})
    for split in SPLITS:
        said = list(_choose_numbers(split))
        with ThreadPoolExecutor(2) as pool:
            files = list(pool.map(lambda each: say(*each), said))
        rows = dict(zip(files, (text for text, *_ in said), strict=True))
        media = [{"bytes": content, "path": None} for content in rows]
        table = pyarrow.table({"audio": media, "transcript": list(rows.values())}, schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")


def _choose_numbers(split: str) -> Iterator[tuple[str, str, str, int, int]]:
    variants, speeds, pitches = SPLITS[split]
    draw = random.Random(f"{SEED} {split}")  # noqa: S311  # rows, not secrets
    for voice in itertools.product(ACCENTS, variants, speeds, pitches):
        for _ in range(NUMBERS[split]):
            yield " ".join(draw.choices(CLASSES, k=2)), *voice


def make_tokenizer() -> Any:
    """Return a tokenizer whose tokens are the ten words."""
    import tokenizers
    import transformers

    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *CLASSES))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=SPECIAL[3]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pad, begin, end, unknown = SPECIAL
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end, unk_token=unknown
    )


def train(rows: Path, folder: Path, *, steps: int = STEPS) -> float:
    """Train a Whisper on fit.parquet, save it with extractor and tokenizer, and return its mean loss at the end."""
    import torch
    from datasets import Audio, Dataset, disable_progress_bars
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    disable_progress_bars()
    torch.manual_seed(SEED)
    extractor, tokenizer = WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS), make_tokenizer()
    pad, begin, end, _ = range(len(SPECIAL))
    network = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer), num_mel_bins=MELS, d_model=64, encoder_layers=2, decoder_layers=2,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128,
            max_source_positions=50 * SECONDS, max_target_positions=32, pad_token_id=pad, bos_token_id=begin,
            eos_token_id=end, decoder_start_token_id=begin, suppress_tokens=None, begin_suppress_tokens=None,
        )
    )  # fmt: skip
    table = Dataset.from_parquet(str(rows / "fit.parquet"), keep_in_memory=True)
    media = table.cast_column("audio", Audio(decode=False))["audio"]
    samples = [decode(each["bytes"]) for each in media]
    features = torch.from_numpy(np.asarray(extractor(samples, sampling_rate=RATE)["input_features"], dtype=np.float32))
    ids = tokenizer([f"{text} {SPECIAL[2]}" for text in table["transcript"]], padding=True)["input_ids"]
    labels = torch.tensor(ids)
    labels[labels == pad] = IGNORED
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    network.train()
    # Threads that wait for each other cost more than they give on a busy machine.
    threads, losses = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for _ in range(steps):
        batch = torch.randint(len(labels), (BATCH_ROWS,))
        loss = network(input_features=features[batch], labels=labels[batch]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    torch.set_num_threads(threads)
    network.eval()
    for each in (network, extractor, tokenizer):
        each.save_pretrained(folder)
    return float(np.mean(losses[-50:]))


def make(rows: Path, checkpoint: Path) -> str:
    """Write both, and say how good the checkpoint is."""
    write_rows(rows)
    return f"loss {train(rows, checkpoint):.3f} at the end"


if __name__ == "__main__":
    make_into(Path(".enginery/spoken-numbers"), __doc__, make)
