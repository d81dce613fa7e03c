"""Audio classification behind the contract: what a row is, ranked answers, and what reads no audio."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.audio.audio_classification import AUDIO_CLASSIFICATION, LabelledAudio
from tasks.model_tasks.inputs.audio import WAVEFORM
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tests.support.audio import draw_audio, save_extractor

SOUND = draw_audio(0)
SOURCE = ModelSource("sounds", "org/sounds", "b" * 40, "audio-classification", ("no", "Yes"))
CONFIG = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForSequenceClassification"]}


@pytest.mark.parametrize(
    ("audio", "label", "reason"),
    [
        (b"RIFF", 0, r"the audio's 4 bytes cannot be decoded"),
        ("a.wav", 0, "the audio is str 'a.wav': name the column with the bytes of audio files in data.audio"),
        (None, 0, "the audio is NoneType None: name the column"),
        (SOUND, [0, 1], r"the label is list \[0, 1\]: several labels per audio file are not supported, give one"),
        (SOUND, 2, "the label is int 2"),
    ],
)
def test_a_row_has_audio_and_one_of_the_datasets_labels(audio: Any, label: Any, reason: str) -> None:
    row = {"audio": audio, "label": label}
    assert AUDIO_CLASSIFICATION.read_row(row, ("no", "yes")) is None
    assert re.search(reason, AUDIO_CLASSIFICATION.explain_row(row))
    assert AUDIO_CLASSIFICATION.read_row({"audio": SOUND, "label": "yes"}, ("no", "yes")) == (SOUND, "yes")


def test_labels_are_numbered_as_the_model_does() -> None:
    rows = Rows((SOUND, draw_audio(1)), (0, 1), ("yes", "NO"), 0, "d" * 64, "the data")
    assert AUDIO_CLASSIFICATION.align_rows(rows, SOURCE).targets == (1, 0)
    assert AUDIO_CLASSIFICATION.identify(SOUND) != AUDIO_CLASSIFICATION.identify(draw_audio(1))


def test_the_best_labels_are_ranked_and_the_best_is_shown(tmp_path: Path) -> None:
    encoder = AUDIO_CLASSIFICATION.open_encoder(save_extractor(tmp_path), [WAVEFORM], {})
    logits = np.array([[0, 9, 8, 7, 6, 5, 4]], dtype=np.float32)
    assert [each.tolist() for each in AUDIO_CLASSIFICATION.answers([logits], [SOUND], encoder)] == [[1, 2, 3, 4, 5]]
    two = np.array([[0.0, np.log(3.0)]], dtype=np.float32)
    assert [each.tolist() for each in AUDIO_CLASSIFICATION.answers([two], [SOUND], encoder)] == [[1]]
    (shown,) = AUDIO_CLASSIFICATION.show([two], [b""], ["a.wav"], ("no", "yes"), encoder)
    assert isinstance(shown, LabelledAudio)
    assert (shown.audio, shown.label, shown.line) == ("a.wav", "yes", "yes (75%)  a.wav")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["Wav2Vec2ForCTC"]}, "a Wav2Vec2ForCTC, which has no head for audio-classification"),
        ({"model_type": "bert"}, "is a bert, and audio-classification takes networks that read a waveform"),
        ({"problem_type": "multi_label_classification"}, "only one label per audio file"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_by_its_config(config: dict[str, Any], words: str) -> None:
    AUDIO_CLASSIFICATION.check_checkpoint(CONFIG)
    with pytest.raises(BadInput, match=words):
        AUDIO_CLASSIFICATION.check_checkpoint(CONFIG | config)


def test_a_checkpoint_of_audio_is_no_classifier_of_texts() -> None:
    with pytest.raises(BadInput, match="is a wav2vec2, which reads audio: use task: audio-classification"):
        TEXT_CLASSIFICATION.check_checkpoint(CONFIG)


def test_the_extractor_fixes_no_size_and_audio_has_no_tokens(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no preprocessor_config\.json"):
        AUDIO_CLASSIFICATION.fixed_sizes(tmp_path)
    assert AUDIO_CLASSIFICATION.fixed_sizes(save_extractor(tmp_path)) == {}
    assert AUDIO_CLASSIFICATION.measure_inputs(tmp_path, AUDIO_CLASSIFICATION.example_inputs, {}).tokens == ()
