"""Audio becomes the values that transformers' own extractor makes, to the last bit; anything else is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from registry.errors import BadInput
from tasks.model_tasks.inputs import audio
from tasks.model_tasks.inputs.audio import (
    WAVEFORM,
    decode_audio,
    make_examples,
    open_audio_encoder,
    read_audio_file,
    read_extractor,
)
from tests.support.audio import RATE, draw_audio, save_audio, save_extractor

EXTRACTORS: dict[str, dict[str, Any]] = {
    "as published": {},
    "raw": {"do_normalize": False},
    "raw, padded otherwise": {"do_normalize": False, "padding_value": 0.25},
    "another rate": {"sampling_rate": 8000},
}
AUDIO = {
    "wav": draw_audio(1),
    "flac": draw_audio(2, 0.71, file_type="FLAC"),
    "ogg": draw_audio(3, 0.33, file_type="OGG"),
    "mp3": draw_audio(4, 0.5, file_type="MP3"),
    "stereo": draw_audio(5, 0.4, channels=2, rate=44_100),
    "24 bits": draw_audio(6, subtype="PCM_24"),
    "silence": save_audio(np.zeros(3000)),
}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_values_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    save_extractor(tmp_path, **EXTRACTORS[name])
    theirs = transformers.AutoFeatureExtractor.from_pretrained(tmp_path, local_files_only=True)
    ours = open_audio_encoder(tmp_path, [WAVEFORM], {})
    for form, content in AUDIO.items():
        samples = decode_audio(content, theirs.sampling_rate)
        expected = theirs(samples, sampling_rate=theirs.sampling_rate, return_tensors="np")[WAVEFORM]
        given = ours.encode([content])[WAVEFORM]
        assert given.dtype == np.float32
        np.testing.assert_array_equal(given, expected, err_msg=form)


def test_rows_are_padded_behind_as_transformers_pads_with_a_mask(tmp_path: Path) -> None:
    import transformers

    save_extractor(tmp_path)
    theirs = transformers.AutoFeatureExtractor.from_pretrained(tmp_path, local_files_only=True)
    files = [draw_audio(seed, seconds) for seed, seconds in enumerate((0.3, 0.11, 0.45))]
    samples = [decode_audio(content, RATE) for content in files]
    # With a mask transformers normalises a row without its padding; without one the padding would change the row.
    expected = theirs(samples, sampling_rate=RATE, padding=True, return_attention_mask=True, return_tensors="np")
    np.testing.assert_array_equal(
        open_audio_encoder(tmp_path, [WAVEFORM], {}).encode(files)[WAVEFORM], expected[WAVEFORM]
    )


def test_channels_are_averaged_and_the_rate_is_the_extractors() -> None:
    left, right = np.full(4000, 0.5), np.full(4000, -0.25)
    assert decode_audio(save_audio(np.stack([left, right], axis=1))) == pytest.approx(0.125, abs=1e-4)
    assert len(decode_audio(draw_audio(0, 0.5, rate=8000), RATE)) == 8000
    times = np.arange(8000) / 8000
    resampled = decode_audio(save_audio(np.sin(2 * np.pi * 440 * times), 8000), RATE)
    exact = np.sin(2 * np.pi * 440 * np.arange(16_000) / RATE)
    assert np.abs(resampled - exact)[500:-500].max() < 1e-3


def test_audio_is_cut_at_the_longest_and_batched_by_length(tmp_path: Path) -> None:
    encoder = open_audio_encoder(save_extractor(tmp_path), [WAVEFORM], {"samples": 6000})
    files = [draw_audio(seed, seconds) for seed, seconds in enumerate((0.9, 0.2, 0.3, 0.15))]
    assert [encoder.count_samples(content) for content in files] == [6000, 3200, 4800, 2400]
    groups = list(encoder.batches(files, 2))
    assert [positions for positions, _ in groups] == [[3, 1], [2, 0]]
    assert [encoder.encode(batch)[WAVEFORM].shape for _, batch in groups] == [(2, 3200), (2, 6000)]


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_files_of_older_versions_name_no_type(tmp_path: Path) -> None:
    old = {"do_normalize": False, "feature_size": 1, "padding_value": 0.0, "sampling_rate": 8000}
    extractor = read_extractor(write(tmp_path, old))
    assert (extractor.rate, extractor.is_normalized, extractor.padding) == (8000, False, 0.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 1}, "has the type 'WhisperFeature"),
        ({"image_processor_type": "ViTImageProcessor"}, "has the type 'ViTImageProcessor'"),
        ({"feature_size": 80}, "feature_size has a value that is not known"),
        ({"sampling_rate": 0}, "sampling_rate has a value"),
        ({"sampling_rate": 10**9}, "sampling_rate has a value"),
        ({"padding_value": 9.5}, "padding_value has a value"),
        ({"padding_side": "left"}, "padding_side has a value"),
        ({"do_normalize": "yes"}, "do_normalize has a value"),
        ({"do_ceptral_normalize": True}, "has a step do_ceptral_normalize, and only Wav2Vec2FeatureExtractor is known"),
    ],
)
def test_an_extractor_with_other_steps_is_refused(content: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        read_extractor(write(tmp_path, content))


def test_a_folder_without_an_extractor_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no preprocessor_config.json: save the checkpoint with its feature"):
        read_extractor(tmp_path)
    write(tmp_path, {})
    with pytest.raises(BadInput, match=r"the graph has inputs input_ids, which audio does not give"):
        open_audio_encoder(tmp_path, ["input_ids", WAVEFORM], {})
    (tmp_path / "preprocessor_config.json").write_text('{"feature_size":', encoding="utf-8")
    with pytest.raises(BadInput, match="it is not a JSON object"):
        read_extractor(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"0 bytes cannot be decoded \(no audio\): give a WAV, FLAC, OGG or MP3"),
        (b"\x89PNG\r\n\x1a\n" * 9, "no audio"),
        (AUDIO["wav"][:30], "cannot be decoded"),
        (AUDIO["flac"][:3000], "cannot be decoded"),
        (AUDIO["ogg"][:2000], "cannot be decoded"),
        (save_audio(np.zeros(4000), file_type="AU"), r"\(the format AU\)"),
        (save_audio(np.full(4000, np.nan), subtype="FLOAT"), "a sample is no finite number"),
        (draw_audio(0, 0.05), "has 0.050 s, less than 0.1 s: drop it"),
        (draw_audio(0, 0.2, channels=9), "has 9 channels, more than 8: give one or two"),
        (draw_audio(0, 3, rate=500), "has 500 samples a second, not 1000 to 384000: resample it"),
    ],
    ids=["empty", "PNG", "torn WAV", "torn FLAC", "torn OGG", "AU", "NaN", "short", "channels", "slow"],
)
def test_what_is_no_audio_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        decode_audio(content)


def test_audio_is_refused_by_its_length_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MOST_VALUES", 1000)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(BadInput, match="more than 0 million samples: cut it"):
        decode_audio(AUDIO["wav"])


def test_a_file_is_read_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "sound.wav"
    file.write_bytes(AUDIO["wav"])
    assert read_audio_file(str(file)) == AUDIO["wav"]
    file.write_bytes(b"no audio")
    with pytest.raises(BadInput, match=r"sound.wav: the audio's 8 bytes cannot be decoded"):
        read_audio_file(str(file))
    with pytest.raises(BadInput, match=r"hello cannot be read \(No such file or directory\): name an audio file"):
        read_audio_file("hello")
    with pytest.raises(BadInput, match=r"cannot be read \(no path\)"):
        read_audio_file("a\0b")


def test_the_examples_can_be_encoded(tmp_path: Path) -> None:
    encoder = open_audio_encoder(save_extractor(tmp_path), [WAVEFORM], {})
    assert encoder.encode(make_examples())[WAVEFORM].shape == (2, 4800)
