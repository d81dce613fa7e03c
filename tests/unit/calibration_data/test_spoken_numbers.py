"""Spoken numbers are said by the voices of their split, and a Whisper trained on them can be released."""

from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet

from calibration_data.spoken_digits.make import CLASSES, SPLITS
from calibration_data.spoken_digits.transcribe import NUMBERS, SECONDS, _choose_numbers, make_tokenizer, train
from tasks.checkpoints.config import read_config
from tasks.model_tasks.audio.speech_to_text import SPEECH_TO_TEXT
from tests.support.audio import draw_audio


def test_every_voice_of_a_split_says_its_numbers_and_the_same_again() -> None:
    for split, (variants, speeds, pitches) in SPLITS.items():
        said = list(_choose_numbers(split))
        assert said == list(_choose_numbers(split))
        assert len(said) == 4 * len(variants) * len(speeds) * len(pitches) * NUMBERS[split]
        assert {word for text, *_ in said for word in text.split()} == set(CLASSES)
        assert {variant for _, _, variant, _, _ in said} == set(variants)


def test_what_is_trained_is_a_checkpoint_of_its_task(tmp_path: Path) -> None:
    features = datasets.Features({"audio": datasets.Audio(decode=False), "transcript": datasets.Value("string")})
    media = [{"bytes": draw_audio(seed, 0.4), "path": None} for seed in range(20)]
    table = pyarrow.table({"audio": media, "transcript": ["one two"] * 20}, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "fit.parquet")
    train(tmp_path, tmp_path / "checkpoint", steps=1)
    SPEECH_TO_TEXT.check_checkpoint(read_config(tmp_path / "checkpoint"))
    assert SPEECH_TO_TEXT.fixed_sizes(tmp_path / "checkpoint") == {"nb_max_frames": 100 * SECONDS}
    encoder = SPEECH_TO_TEXT.open_encoder(tmp_path / "checkpoint", ("input_features",), {"new_tokens": 8})
    ids = make_tokenizer()("seven two </s>")["input_ids"]
    assert encoder.tokenizer.decode(ids, skip_special_tokens=True) == "seven two"
