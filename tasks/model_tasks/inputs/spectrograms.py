"""Audio files to log-mel spectrograms, by the steps of Whisper's preprocessor_config.json, with NumPy alone.

The steps are those of transformers' WhisperFeatureExtractor (4.57.6), in float64: it computes them in float32 where
torch is there, and is within 1e-5 of its own steps without torch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from registry.errors import BadInput
from tasks.model_tasks.contract import EncodedSizes, Feed, GraphInputs
from tasks.model_tasks.inputs.audio import decode_audio, parse_extractor

FEATURES = "input_features"
SPECTROGRAM_INPUT = GraphInputs((FEATURES,), ("batch", "mels", "frames"), are_tokens=False)
EXTRACTOR = "WhisperFeatureExtractor"
HIGHEST_HZ = 8000.0
# Below so much power, and so many decades below the loudest, there is silence.
LEAST_POWER, DECADES = 1e-10, 8.0
# The mel scale of Slaney's auditory toolbox: linear up to 1000 Hz, then logarithmic.
_LINEAR_HZ, _LINEAR_MELS, _MELS_PER_LOG = 1000.0, 15.0, 27.0 / np.log(6.4)


class _ExtractorFile(BaseModel):
    """preprocessor_config.json: what its steps depend on."""

    model_config = ConfigDict(strict=True, extra="ignore")

    feature_extractor_type: Literal["WhisperFeatureExtractor"]
    feature_size: Annotated[int, Field(ge=1, le=512)] = 80
    sampling_rate: Literal[16_000] = 16_000
    hop_length: Annotated[int, Field(ge=16, le=4096)] = 160
    chunk_length: Annotated[int, Field(ge=1, le=60)] = 30
    n_fft: Annotated[int, Field(ge=32, le=4096)] = 400
    padding_value: Annotated[float, Field(ge=0, le=0)] = 0.0
    dither: Annotated[float, Field(ge=0, le=0)] = 0.0
    do_normalize: Literal[False] = False


@dataclass(frozen=True)
class SpectrogramExtractor:
    """The steps from samples to a spectrogram of `seconds`: longer audio is cut, shorter is followed by silence."""

    mels: int
    rate: int
    hop: int
    seconds: int
    window: int
    filters: NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def frames(self) -> int:
        """How many frames a spectrogram has."""
        return self.seconds * self.rate // self.hop

    def process(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-mel spectrogram of one row, float32 [mels, frames]."""
        cut = samples[: self.seconds * self.rate]
        padded = np.pad(cut.astype(np.float64), (0, self.seconds * self.rate - len(cut)))
        reflected = np.pad(padded, self.window // 2, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(reflected, self.window)[:: self.hop][: self.frames]
        # A periodic Hann window.
        hann = np.hanning(self.window + 1)[:-1]
        power = np.square(np.abs(np.fft.rfft(windows * hann, axis=-1)))
        decibels = np.log10(np.maximum(self.filters @ power.T, LEAST_POWER))
        features: NDArray[np.float32] = ((np.maximum(decibels, decibels.max() - DECADES) + 4.0) / 4.0).astype(
            np.float32
        )
        return features


def read_spectrogram_extractor(folder: Path) -> SpectrogramExtractor:
    """Read the steps of a checkpoint's or bundle's feature extractor.

    Raises:
        BadInput: there is no preprocessor_config.json, or it is not one of Whisper.
    """
    said = parse_extractor(folder, _ExtractorFile, EXTRACTOR)
    filters = make_mel_filters(said.feature_size, said.n_fft, said.sampling_rate)
    return SpectrogramExtractor(
        said.feature_size, said.sampling_rate, said.hop_length, said.chunk_length, said.n_fft, filters
    )


def make_mel_filters(mels: int, window: int, rate: int) -> NDArray[np.float64]:
    """Return triangular filters of equal area from 0 to 8000 Hz, [mels, window // 2 + 1].

    Slaney, "Auditory Toolbox" (1998), as `transformers.audio_utils.mel_filter_bank` and librosa have it.
    """
    ends = _to_hertz(np.linspace(0.0, _to_mels(HIGHEST_HZ), mels + 2))
    bins = np.linspace(0, rate // 2, window // 2 + 1)
    slopes = ends[:, None] - bins[None, :]
    widths = np.diff(ends)[:, None]
    triangles = np.maximum(0.0, np.minimum(-slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]))
    filters: NDArray[np.float64] = triangles * (2.0 / (ends[2:] - ends[:-2]))[:, None]
    return filters


def _to_mels(hertz: float) -> float:
    return float(_LINEAR_MELS + np.log(hertz / _LINEAR_HZ) * _MELS_PER_LOG)


def _to_hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mels * _LINEAR_HZ / _LINEAR_MELS
    return np.where(mels < _LINEAR_MELS, linear, _LINEAR_HZ * np.exp((mels - _LINEAR_MELS) / _MELS_PER_LOG))


class Extractor(Protocol):
    """The steps from samples at `rate` Hz to a spectrogram, of one size whatever the audio's."""

    @property
    def rate(self) -> int:
        """Samples a second."""

    def process(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the spectrogram of one row, float32 of two axes."""


@dataclass(frozen=True)
class SpectrogramEncoder:
    """Decodes audio files, and makes spectrograms of one size of them, for the input `name`."""

    extractor: Extractor
    name: str = FEATURES

    def encode(self, inputs: Sequence[bytes]) -> Feed:
        """Return float32 [len(inputs), …], the axes of one spectrogram last."""
        rows = [self.extractor.process(decode_audio(content, self.extractor.rate)) for content in inputs]
        return {self.name: np.stack(rows)}

    def batches(self, inputs: Sequence[bytes], size: int) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield audio in its order: all spectrograms have one size."""
        for start in range(0, len(inputs), size):
            positions = list(range(start, min(start + size, len(inputs))))
            yield positions, [inputs[position] for position in positions]


def open_spectrogram_encoder(folder: Path, input_names: Sequence[str]) -> SpectrogramEncoder:
    """Open the encoder of a folder that holds preprocessor_config.json.

    Raises:
        BadInput: as `read_spectrogram_extractor`, or the graph has inputs that audio does not give.
    """
    if strange := sorted(set(input_names) - {FEATURES}):
        raise BadInput(f"the graph has inputs {', '.join(strange)}, which audio does not give: only {FEATURES}")
    return SpectrogramEncoder(read_spectrogram_extractor(folder))


def measure_spectrograms(folder: Path, inputs: Sequence[bytes]) -> EncodedSizes:
    """Encode audio, one file at a time, with a preprocessor_config.json that nobody has tried.

    Raises:
        BadInput: as `open_spectrogram_encoder`, or audio cannot be decoded.
    """
    encoder = open_spectrogram_encoder(folder, ())
    for content in inputs:
        encoder.encode([content])
    return EncodedSizes((), 0)
