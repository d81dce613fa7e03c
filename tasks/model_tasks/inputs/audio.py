"""Audio files to feed dicts, by the steps of the checkpoint's preprocessor_config.json, with NumPy alone.

libsndfile decodes, soxr resamples, and the steps are those of transformers' Wav2Vec2FeatureExtractor (4.57.6), to the
last bit: a serving host then needs neither torch nor transformers. An extractor with any other step is refused.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.errors import BadInput, first_line
from tasks.model_tasks.contract import EncodedSizes, Feed, GraphInputs

if TYPE_CHECKING:
    from soundfile import SoundFile

EXTRACTOR_FILE = "preprocessor_config.json"
WAVEFORM = "input_values"
SAMPLE_INPUT = GraphInputs((WAVEFORM,), ("batch", "samples"), are_tokens=False)
EXTRACTOR = "Wav2Vec2FeatureExtractor"
# libsndfile reads many more, most of them raw samples behind a header that few programs write.
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF")
# A decoded sample of a channel has 4 bytes: 200 MB.
MOST_VALUES = 50_000_000
MOST_CHANNELS = 8
# The networks see nothing in less than 25 ms.
SHORTEST_SECONDS = 0.1
RATES = (1000, 384_000)
_AGAIN = "save the checkpoint with its feature extractor again, or use another model"

ExtractorForm = TypeVar("ExtractorForm", bound=BaseModel)


class _ExtractorFile(BaseModel):
    """preprocessor_config.json: what its steps depend on, and in `model_extra` everything else."""

    model_config = ConfigDict(strict=True, extra="allow")

    feature_extractor_type: str | None = None
    feature_size: Literal[1] = 1
    sampling_rate: Annotated[int, Field(ge=RATES[0], le=RATES[1])] = 16_000
    padding_value: Annotated[float, Field(ge=-1, le=1)] = 0.0
    padding_side: Literal["right"] = "right"
    do_normalize: bool = True


@dataclass(frozen=True)
class FeatureExtractor:
    """The steps from samples to the model's values: at `rate` Hz, perhaps with mean 0 and variance 1, padded behind."""

    rate: int
    is_normalized: bool
    padding: float

    def process(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the samples of one row as the model sees them, float32 [samples]."""
        if not self.is_normalized:
            return samples
        # transformers' zero_mean_unit_var_norm, of the row without its padding.
        values: NDArray[np.float32] = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        return values


def parse_extractor(folder: Path, form: type[ExtractorForm], known: str = "") -> ExtractorForm:
    """Parse the preprocessor_config.json of a folder; `known` names the one extractor that has this form.

    Raises:
        BadInput: there is none, or it is not one of this form.
    """
    file = folder / EXTRACTOR_FILE
    if not file.is_file():
        raise BadInput(f"{folder} has no {EXTRACTOR_FILE}: save the checkpoint with its feature extractor")
    try:
        return form.model_validate_json(file.read_bytes())
    except ValidationError as error:
        key = next((str(step) for step in error.errors(include_url=False)[0]["loc"]), "")
        what = f"{key} has a value that is not known" if key else "it is not a JSON object"
        only = f", and only {known} is" if known else ""
        raise BadInput(f"{file}: {what}{only}: {_AGAIN}") from None


def read_extractor(folder: Path) -> FeatureExtractor:
    """Read the steps of a checkpoint's or bundle's feature extractor.

    Raises:
        BadInput: there is no preprocessor_config.json, it is not one, or its extractor has other steps.
    """
    file, said = folder / EXTRACTOR_FILE, parse_extractor(folder, _ExtractorFile)
    extra = said.model_extra or {}
    strange = sorted(key for key, value in extra.items() if key.startswith("do_") and value)
    # Files of older versions do not name the type; those of images do.
    kind = said.feature_extractor_type or extra.get("image_processor_type") or EXTRACTOR
    if kind != EXTRACTOR or strange:
        what = f"a step {strange[0][:60]}" if strange else f"the type {kind!r:.60}"
        raise BadInput(f"{file}: the feature extractor has {what}, and only {EXTRACTOR} is known: use another model")
    return FeatureExtractor(said.sampling_rate, said.do_normalize, said.padding_value)


@dataclass(frozen=True)
class AudioEncoder:
    """Decodes audio files, and makes the model's values of their first `longest` samples (None: of all)."""

    extractor: FeatureExtractor
    longest: int | None

    def encode(self, inputs: Sequence[bytes]) -> Feed:
        """Return float32 [len(inputs), samples of the longest]; shorter rows are padded behind."""
        rows = [
            self.extractor.process(decode_audio(content, self.extractor.rate)[: self.longest]) for content in inputs
        ]
        values = np.full((len(rows), max(map(len, rows))), self.extractor.padding, dtype=np.float32)
        for padded, row in zip(values, rows, strict=True):
            padded[: len(row)] = row
        return {WAVEFORM: values}

    def batches(self, inputs: Sequence[bytes], size: int) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield audio of similar length together (less padding), as (their positions, the files)."""
        lengths = [self.count_samples(content) for content in inputs]
        order = sorted(range(len(inputs)), key=lambda position: lengths[position])
        for start in range(0, len(order), size):
            positions = order[start : start + size]
            yield positions, [inputs[position] for position in positions]

    def count_samples(self, content: bytes) -> int:
        """Return about how many samples the model sees of an audio file, which is not decoded."""
        with _open_audio(content) as file:
            samples: int = round(file.frames * self.extractor.rate / file.samplerate)
        return samples if self.longest is None else min(samples, self.longest)


def open_audio_encoder(folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> AudioEncoder:
    """Open the encoder of a folder that holds preprocessor_config.json; audio is cut at `largest["samples"]`.

    Raises:
        BadInput: as `read_extractor`, or the graph has inputs that audio does not give.
    """
    if strange := sorted(set(input_names) - {WAVEFORM}):
        raise BadInput(f"the graph has inputs {', '.join(strange)}, which audio does not give: only {WAVEFORM}")
    return AudioEncoder(read_extractor(folder), largest.get("samples"))


def measure_audio(folder: Path, inputs: Sequence[bytes], largest: Mapping[str, int]) -> EncodedSizes:
    """Encode audio, one file at a time, with a preprocessor_config.json that nobody has tried; it has no tokens.

    Raises:
        BadInput: as `open_audio_encoder`, or audio cannot be decoded.
    """
    encoder = open_audio_encoder(folder, (), largest)
    for content in inputs:
        encoder.encode([content])
    return EncodedSizes((), 0)


def decode_audio(content: bytes, rate: int | None = None) -> NDArray[np.float32]:
    """Decode an audio file, float32 [samples] from -1 to 1: the mean of its channels, at `rate` Hz or its own.

    Resampled as librosa does it, and so transformers' pipelines (soxr, high quality).

    Raises:
        BadInput: it is no audio of `FORMATS`, torn, too short, or too large.
    """
    try:
        with _open_audio(content) as file:
            values: NDArray[np.float32] = file.read(dtype="float32", always_2d=True)
            frames, own_rate = file.frames, file.samplerate
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # what libsndfile says depends on the format
        raise _not_decoded(content, first_line(error)[:100]) from error
    if len(values) != frames:
        raise _not_decoded(content, f"it ends after {len(values)} of {frames} samples")
    if not np.isfinite(values).all():
        raise _not_decoded(content, "a sample is no finite number")
    samples: NDArray[np.float32] = values.mean(axis=1)
    if rate is None or rate == own_rate:
        return samples
    import soxr  # native code, which planning a release does not need

    resampled: NDArray[np.float32] = soxr.resample(samples, own_rate, rate)
    return resampled


def read_audio_file(text: str) -> bytes:
    """Read the audio file that a user names.

    Raises:
        BadInput: it cannot be read, or is no audio.
    """
    try:
        content = Path(text).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path"
        raise BadInput(f"{text[:200]} cannot be read ({reason}): name an audio file") from None
    try:
        decode_audio(content)
    except BadInput as error:
        raise BadInput(f"{text[:200]}: {error}") from None
    return content


def make_examples() -> tuple[bytes, ...]:
    """Return two short tones as WAV files."""
    import soundfile

    files = [io.BytesIO(), io.BytesIO()]
    for file, seconds in zip(files, (0.3, 0.2), strict=True):
        soundfile.write(file, np.sin(np.arange(int(16_000 * seconds)) / 10), 16_000, format="WAV", subtype="PCM_16")
    return tuple(file.getvalue() for file in files)


def _open_audio(content: bytes) -> "SoundFile":
    """Open an audio file, and check by its header that it can be decoded."""
    import soundfile  # native code, which planning a release does not need

    try:
        file: Any = soundfile.SoundFile(io.BytesIO(content))
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        said = getattr(error, "error_string", str(error))  # without the address of the open file
        raise _not_decoded(content, "no audio" if "not recognised" in said else said[:100]) from None
    if file.format not in FORMATS:
        raise _not_decoded(content, f"the format {file.format}")
    if file.frames * file.channels > MOST_VALUES:
        raise BadInput(f"the audio has more than {MOST_VALUES / 1e6:.0f} million samples: cut it")
    if file.channels > MOST_CHANNELS:
        raise BadInput(f"the audio has {file.channels} channels, more than {MOST_CHANNELS}: give one or two")
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise BadInput(f"the audio has {file.samplerate} samples a second, not {RATES[0]} to {RATES[1]}: resample it")
    if file.frames < SHORTEST_SECONDS * file.samplerate:
        raise BadInput(f"the audio has {file.frames / file.samplerate:.3f} s, less than {SHORTEST_SECONDS} s: drop it")
    return file


def _not_decoded(content: bytes, reason: str) -> BadInput:
    return BadInput(f"the audio's {len(content)} bytes cannot be decoded ({reason}): give a WAV, FLAC, OGG or MP3")
