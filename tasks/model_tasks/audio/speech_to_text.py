"""Speech to text with Whisper: one audio file in, its transcript out, written token by token by a decoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from registry.errors import BadInput
from registry.records import NEW_TOKENS
from tasks.model_tasks.audio.speech_recognition import SpeechRecognition, Transcript
from tasks.model_tasks.audio.word_errors import NORMALIZED_CHARACTER_ERROR_RATE, NORMALIZED_WORD_ERROR_RATE
from tasks.model_tasks.contract import Answers, EncodedSizes, Encoder, GraphInputs, Metric, ShownAnswer
from tasks.model_tasks.inputs.audio import EXTRACTOR_FILE
from tasks.model_tasks.inputs.spectrograms import (
    SPECTROGRAM_INPUT,
    measure_spectrograms,
    open_spectrogram_encoder,
    read_spectrogram_extractor,
)
from tasks.model_tasks.inputs.texts import EXAMPLE_TEXTS, TOKENIZER, measure_texts, open_text_encoder
from tasks.model_tasks.inputs.written import WritingEncoder, decode_written, encode_answers

WHISPER = "whisper"


@dataclass(frozen=True)
class SpeechToText(SpeechRecognition):
    """A transcript per audio file; output 0 is tokens [batch, new tokens], output 1 the log of their probability."""

    name: str = "speech-to-text"
    axes: tuple[str, ...] = ("batch", NEW_TOKENS)
    graph_inputs: GraphInputs = SPECTROGRAM_INPUT
    export_task: str = "automatic-speech-recognition-with-past"
    metrics: tuple[Metric, ...] = (NORMALIZED_WORD_ERROR_RATE, NORMALIZED_CHARACTER_ERROR_RATE)
    judged_outputs: tuple[int, ...] = (0, 1)
    answer_axes: tuple[str, ...] = ("batch", NEW_TOKENS)
    serving_files: tuple[str, ...] = (EXTRACTOR_FILE, TOKENIZER)

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint is a Whisper.

        Raises:
            BadInput: it is another model.
        """
        if config.get("model_type") != WHISPER:
            raise BadInput(
                f"the checkpoint is a {str(config.get('model_type'))[:60]}, and {self.name} takes Whisper: use task: "
                "automatic-speech-recognition for CTC models such as wav2vec2"
            )

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check that the decoder has a position for each token that is written, behind four of its prompt.

        Raises:
            BadInput: it does not.
        """
        positions, longest = config.get("max_target_positions"), largest.get(NEW_TOKENS, 0)
        if isinstance(positions, int) and positions < longest + _PROMPT_TOKENS:
            raise BadInput(
                f"the profiles allow {longest} new tokens, the checkpoint has positions for "
                f"{positions - _PROMPT_TOKENS}: lower the max of {NEW_TOKENS}"
            )

    def fixed_sizes(self, folder: Path) -> dict[str, int]:
        """Return the frames of a spectrogram.

        Raises:
            BadInput: there is no feature extractor, or it is not Whisper's.
        """
        return {"nb_max_frames": read_spectrogram_extractor(folder).frames}

    def open_encoder(  # type: ignore[override]
        self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]
    ) -> WritingEncoder:
        """Open the folder's feature extractor and tokenizer.json; audio is cut at the extractor's seconds."""
        tokenizer = open_text_encoder(folder, (), largest).tokenizer
        return WritingEncoder(open_spectrogram_encoder(folder, input_names), tokenizer)

    def measure_inputs(self, folder: Path, inputs: Sequence[bytes], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode audio with the folder's feature extractor, and a text with its tokenizer, which nobody has tried."""
        measure_spectrograms(folder, inputs)
        return EncodedSizes((), measure_texts(folder, EXAMPLE_TEXTS, largest).largest_id)

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Any], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the transcript of each file as UTF-8, uint8 [bytes]."""
        return encode_answers(decode_written(outputs, encoder))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        questions: Sequence[str],
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the transcript of each file."""
        return [Transcript(*pair) for pair in zip(questions, decode_written(outputs, encoder), strict=True)]


# Start of transcript, language, task and no timestamps.
_PROMPT_TOKENS = 4
SPEECH_TO_TEXT = SpeechToText()
