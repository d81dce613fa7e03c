"""Audio files to log-mel filter banks as Kaldi makes them, by the steps of an AST's preprocessor_config.json.

The steps are those of transformers' ASTFeatureExtractor (4.57.6), in float64 with NumPy alone, within 0.0001 of it: the
libraries that have them bring torch, or another native library to each serving host.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tasks.model_tasks.inputs.audio import EXTRACTOR_FILE, WAVEFORM, parse_extractor
from tasks.model_tasks.inputs.spectrograms import SpectrogramEncoder

EXTRACTOR = "ASTFeatureExtractor"
# Kaldi's: 25 ms every 10 ms, emphasized, and filtered from 20 Hz to half the rate.
WINDOW, HOP, TRANSFORM = 400, 160, 512
EMPHASIS, LOWEST_HZ = 0.97, 20.0
LEAST_POWER = float(np.finfo(np.float32).eps)


class _ExtractorFile(BaseModel):
    """preprocessor_config.json: what its steps depend on."""

    model_config = ConfigDict(strict=True, extra="ignore")

    feature_extractor_type: Literal["ASTFeatureExtractor"]
    feature_size: Literal[1] = 1
    sampling_rate: Literal[16_000] = 16_000
    num_mel_bins: Annotated[int, Field(ge=1, le=512)] = 128
    max_length: Annotated[int, Field(ge=1, le=8192)] = 1024
    do_normalize: bool = True
    mean: Annotated[float, Field(ge=-1000, le=1000)] = -4.2677393
    std: Annotated[float, Field(gt=0, le=1000)] = 4.5689974


@dataclass(frozen=True)
class FilterBankExtractor:
    """The steps from samples to `frames` filter banks: more are cut, fewer are followed by zeros, then normalized."""

    rate: int
    frames: int
    mean: float
    scale: float
    filters: NDArray[np.float64] = field(repr=False, compare=False)

    def process(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the filter banks of one row, float32 [frames, mels]."""
        cut = samples[: WINDOW + (self.frames - 1) * HOP].astype(np.float64)
        windows = np.lib.stride_tricks.sliding_window_view(cut, WINDOW)[::HOP]
        windows = windows - windows.mean(axis=1, keepdims=True)
        before = np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
        emphasized = (windows - EMPHASIS * before) * np.hanning(WINDOW)
        power = np.square(np.abs(np.fft.rfft(emphasized, TRANSFORM, axis=1)))
        banks = np.zeros((self.frames, self.filters.shape[1]))
        banks[: len(power)] = np.log(np.maximum(power @ self.filters, LEAST_POWER))
        features: NDArray[np.float32] = ((banks - self.mean) / self.scale).astype(np.float32)
        return features


def has_filter_banks(folder: Path) -> bool:
    """Tell whether a checkpoint's or bundle's feature extractor is one of filter banks."""
    file = folder / EXTRACTOR_FILE
    return file.is_file() and f'"{EXTRACTOR}"'.encode() in file.read_bytes()


def read_filter_bank_extractor(folder: Path) -> FilterBankExtractor:
    """Read the steps of a checkpoint's or bundle's feature extractor.

    Raises:
        BadInput: there is no preprocessor_config.json, or it is not one of an AST.
    """
    said = parse_extractor(folder, _ExtractorFile, EXTRACTOR)
    mean, scale = (said.mean, 2 * said.std) if said.do_normalize else (0.0, 1.0)
    filters = make_filters(said.num_mel_bins, said.sampling_rate)
    return FilterBankExtractor(said.sampling_rate, said.max_length, mean, scale, filters)


def make_filters(mels: int, rate: int) -> NDArray[np.float64]:
    """Return filters that are triangles in mels from 20 Hz to half the rate, [TRANSFORM // 2 + 1, mels].

    Kaldi's feat/mel-computations.cc, mel = 1127 ln(1 + Hz / 700), as `transformers.audio_utils.mel_filter_bank` has it.
    """
    ends = np.linspace(_to_mels(np.float64(LOWEST_HZ)), _to_mels(np.float64(rate / 2)), mels + 2)
    bins = _to_mels(np.arange(TRANSFORM // 2 + 1) * (rate / TRANSFORM))[:, None]
    rising, falling = (bins - ends[:-2]) / np.diff(ends)[:-1], (ends[2:] - bins) / np.diff(ends)[1:]
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return filters


def _to_mels(hertz: NDArray[np.floating] | np.float64) -> NDArray[np.float64]:
    return np.asarray(1127.0 * np.log(1.0 + hertz / 700.0))


def open_filter_bank_encoder(folder: Path) -> SpectrogramEncoder:
    """Open the encoder of a folder that holds preprocessor_config.json.

    Raises:
        BadInput: as `read_filter_bank_extractor`.
    """
    return SpectrogramEncoder(read_filter_bank_extractor(folder), WAVEFORM)
