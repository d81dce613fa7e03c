"""Spectrograms are those of transformers' WhisperFeatureExtractor, and other extractors are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.errors import BadInput
from tasks.model_tasks.inputs.audio import EXTRACTOR_FILE, decode_audio
from tasks.model_tasks.inputs.spectrograms import (
    measure_spectrograms,
    open_spectrogram_encoder,
    read_spectrogram_extractor,
)
from tests.support.audio import RATE, draw_audio

# torch's transform, in float32, is so far from NumPy's in float64, of values from about -1 to 2.
CLOSE = 2e-5


def save_whisper_extractor(folder: Path, **settings: Any) -> Any:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(**settings)
    extractor.save_pretrained(folder)
    return extractor


@pytest.mark.parametrize("settings", [{}, {"feature_size": 128}, {"feature_size": 16, "chunk_length": 1}])
def test_spectrograms_are_transformers_own(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = save_whisper_extractor(tmp_path, **settings), read_spectrogram_extractor(tmp_path)
    np.testing.assert_allclose(ours.filters.T, theirs.mel_filters, atol=1e-12)
    for seconds in (0.1, 0.7, 1.0, 3.3):
        samples = decode_audio(draw_audio(7, seconds), RATE)
        wanted = theirs(samples, sampling_rate=RATE, return_tensors="np")["input_features"][0]
        made = ours.process(samples)
        assert made.dtype == np.float32
        assert made.shape == wanted.shape == (ours.mels, ours.frames)
        np.testing.assert_allclose(made, wanted, atol=CLOSE)


def test_a_row_is_the_same_alone_and_among_others(tmp_path: Path) -> None:
    save_whisper_extractor(tmp_path, feature_size=16, chunk_length=1)
    encoder = open_spectrogram_encoder(tmp_path, ("input_features",))
    files = [draw_audio(seed, 0.2 + 0.3 * seed) for seed in range(5)]
    together = encoder.encode(files)["input_features"]
    for row, file in zip(together, files, strict=True):
        np.testing.assert_array_equal(encoder.encode([file])["input_features"][0], row)
    batches = list(encoder.batches(files, 2))
    assert [positions for positions, _ in batches] == [[0, 1], [2, 3], [4]]
    assert [file for _, part in batches for file in part] == files
    assert measure_spectrograms(tmp_path, files).tokens == ()


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "feature_extractor_type has a value"),
        ({"dither": 0.1}, "dither has a value"),
        ({"do_normalize": True}, "do_normalize has a value"),
        ({"hop_length": 0}, "hop_length has a value"),
        ({"chunk_length": 10**9}, "chunk_length has a value"),
        ({"sampling_rate": 8000}, "sampling_rate has a value"),
    ],
)
def test_an_extractor_with_other_steps_is_refused(said: dict[str, Any], what: str, tmp_path: Path) -> None:
    save_whisper_extractor(tmp_path)
    file = tmp_path / EXTRACTOR_FILE
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | said), encoding="utf-8")
    with pytest.raises(BadInput, match=what):
        read_spectrogram_extractor(tmp_path)


def test_a_missing_or_torn_file_and_a_strange_input_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"has no {EXTRACTOR_FILE}"):
        read_spectrogram_extractor(tmp_path)
    (tmp_path / EXTRACTOR_FILE).write_text("[", encoding="utf-8")
    with pytest.raises(BadInput, match="it is not a JSON object"):
        read_spectrogram_extractor(tmp_path)
    save_whisper_extractor(tmp_path)
    with pytest.raises(BadInput, match="inputs input_values, which audio does not give"):
        open_spectrogram_encoder(tmp_path, ("input_values",))
