"""What the tasks that read audio files share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import EncodedSizes, Encoder, GraphInputs
from tasks.model_tasks.inputs.audio import (
    EXTRACTOR_FILE,
    SAMPLE_INPUT,
    AudioEncoder,
    decode_audio,
    make_examples,
    measure_audio,
    open_audio_encoder,
    read_audio_file,
    read_extractor,
)
from tasks.model_tasks.labels import show_value


@dataclass(frozen=True)
class AudioTask:
    """The members of a task whose rows are audio files."""

    optional_columns: tuple[str, ...] = ()
    optional_axes: tuple[str, ...] = ()
    axes: tuple[str, ...] = ("batch", "samples")
    graph_inputs: GraphInputs = SAMPLE_INPUT
    judged_outputs: tuple[int, ...] = (0,)
    serving_files: tuple[str, ...] = (EXTRACTOR_FILE,)
    request: str = "audio"
    answer_file: str | None = None

    @property
    def example_inputs(self) -> tuple[bytes, ...]:
        """Two short tones."""
        return make_examples()

    def identify(self, row_input: bytes) -> str:
        """Return the sha256 of the audio file."""
        return f"sha256 {sha256(row_input).hexdigest()}"

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check nothing: positions are relative, and audio of any length is read."""

    def check_rows(self, rows: Rows, source: ModelSource, folder: Path) -> None:
        """Check nothing: audio says nothing of its feature extractor."""

    def check_outputs(self, shapes: Sequence[Sequence[int]], classes: int, encoder: Encoder) -> None:
        """Check nothing: `answer_axes` say what outputs have."""

    def fixed_sizes(self, folder: Path) -> dict[str, int]:
        """Return no sizes: rows differ in length.

        Raises:
            BadInput: there is no feature extractor.
        """
        read_extractor(folder)
        return {}

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> AudioEncoder:
        """Open the folder's feature extractor; audio is cut at the largest number of samples."""
        return open_audio_encoder(folder, input_names, largest)

    def measure_inputs(self, folder: Path, inputs: Sequence[bytes], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode audio with the folder's feature extractor, which nobody has tried."""
        return measure_audio(folder, inputs, largest)

    def reduce_outputs(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        encoder: Encoder,  # noqa: ARG002
    ) -> Sequence[NDArray[Any]]:
        """Return the outputs as they are: a row has few numbers."""
        return outputs

    def read_question(self, text: str) -> bytes:
        """Read the audio file that a user names."""
        return read_audio_file(text)

    def read_request(self, content: bytes) -> tuple[str, bytes]:
        """Return (sha256, audio file) of the bytes of an audio file.

        Raises:
            BadInput: it is no audio.
        """
        decode_audio(content)
        return self.identify(content), content

    def write_request(self, row_input: bytes) -> bytes:
        """Return the audio file."""
        return row_input


def is_audio(value: object) -> bool:
    """Tell whether a value is the bytes of an audio file that can be decoded."""
    return isinstance(value, bytes) and explain_audio(value) is None


def explain_audio(value: object) -> str | None:
    """Return, for an error, what is wrong with the audio of a row; None where nothing is."""
    if not isinstance(value, bytes):
        return f"the audio is {show_value(value)}: name the column with the bytes of audio files in data.audio"
    try:
        decode_audio(value)
    except BadInput as error:
        return str(error)
    return None
