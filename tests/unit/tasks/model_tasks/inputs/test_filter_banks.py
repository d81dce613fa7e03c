"""Filter banks are those of transformers' ASTFeatureExtractor, and a network that reads them is exported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.errors import BadInput
from tasks.checkpoints.source import from_folder
from tasks.graphs.export import check_export, export_checkpoint
from tasks.model_tasks.audio.audio_classification import AUDIO_CLASSIFICATION
from tasks.model_tasks.audio.speech_recognition import AUTOMATIC_SPEECH_RECOGNITION
from tasks.model_tasks.inputs.audio import EXTRACTOR_FILE, decode_audio
from tasks.model_tasks.inputs.filter_banks import read_filter_bank_extractor
from tests.support.audio import RATE, draw_audio, save_spectrogram_listener

# transformers keeps the transform in complex64; values are from about -2 to 2.
CLOSE = 1e-4
# transformers warns of its own default: of 128 filters the lowest has no frequency.
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter")
AST = {"model_type": "audio-spectrogram-transformer", "architectures": ["ASTForAudioClassification"]}


@pytest.mark.parametrize(
    "settings", [{}, {"num_mel_bins": 64, "max_length": 50}, {"do_normalize": False}, {"mean": -6.8, "std": 5.5}]
)
def test_filter_banks_are_transformers_own(settings: dict[str, Any], tmp_path: Path) -> None:
    from transformers import ASTFeatureExtractor

    theirs = ASTFeatureExtractor(**settings)
    theirs.save_pretrained(tmp_path)
    ours = read_filter_bank_extractor(tmp_path)
    for seconds in (0.1, 0.7, 3.3):
        samples = decode_audio(draw_audio(7, seconds), RATE)
        wanted = theirs(samples, sampling_rate=RATE, return_tensors="np")["input_values"][0]
        made = ours.process(samples)
        assert made.dtype == np.float32
        assert made.shape == wanted.shape
        np.testing.assert_allclose(made, wanted, atol=CLOSE)


def test_silence_is_as_transformers_has_it(tmp_path: Path) -> None:
    from transformers import ASTFeatureExtractor

    theirs = ASTFeatureExtractor(max_length=30)
    theirs.save_pretrained(tmp_path)
    silence = np.zeros(RATE // 2, dtype=np.float32)
    wanted = theirs(silence, sampling_rate=RATE, return_tensors="np")["input_values"][0]
    np.testing.assert_allclose(read_filter_bank_extractor(tmp_path).process(silence), wanted, atol=CLOSE)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"sampling_rate": 8000}, "sampling_rate has a value"),
        ({"num_mel_bins": 0}, "num_mel_bins has a value"),
        ({"max_length": 10**9}, "max_length has a value"),
        ({"std": 0.0}, "std has a value"),
    ],
)
def test_an_extractor_with_other_steps_is_refused(said: dict[str, Any], what: str, tmp_path: Path) -> None:
    file = save_spectrogram_listener(tmp_path) / EXTRACTOR_FILE
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | said), encoding="utf-8")
    with pytest.raises(BadInput, match=what):
        AUDIO_CLASSIFICATION.fixed_sizes(tmp_path)


@pytest.mark.slow
def test_a_spectrogram_transformer_is_exported_and_the_same_as_in_pytorch(tmp_path: Path) -> None:
    save_spectrogram_listener(tmp_path / "ast")
    source = from_folder(tmp_path / "ast", name="ast", task="audio-classification", into=tmp_path / "source")
    onnx = export_checkpoint(source, into=tmp_path / "onnx")
    assert [(tensor.name, tensor.shape) for tensor in onnx.inputs] == [("input_values", ("batch_size", 48, 32))]
    encoder = AUDIO_CLASSIFICATION.open_encoder(source.directory, ["input_values"], {})
    files = [draw_audio(seed, 0.1 + seed / 5) for seed in range(5)]
    check_export(source, onnx, encoder.encode(files), encoder.encode(files[:1]))


def test_profiles_of_spectrograms_name_no_samples_and_those_of_waveforms_do() -> None:
    AUDIO_CLASSIFICATION.check_checkpoint(AST)
    AUDIO_CLASSIFICATION.check_shapes(AST, {"batch": 8})
    AUDIO_CLASSIFICATION.check_shapes({"model_type": "hubert"}, {"batch": 8, "samples": 16_000})
    with pytest.raises(BadInput, match="spectrograms of one size: remove samples from the profiles"):
        AUDIO_CLASSIFICATION.check_shapes(AST, {"batch": 8, "samples": 16_000})
    with pytest.raises(BadInput, match="which reads a waveform: add samples to the profiles"):
        AUDIO_CLASSIFICATION.check_shapes({"model_type": "hubert"}, {"batch": 8})
    with pytest.raises(BadInput, match="automatic-speech-recognition"):
        AUTOMATIC_SPEECH_RECOGNITION.check_checkpoint(AST)
