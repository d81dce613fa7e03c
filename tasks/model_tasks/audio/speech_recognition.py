"""Automatic speech recognition with CTC: one audio file in, its transcript out, judged by the word error rate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.audio.audio_task import AudioTask, explain_audio, is_audio
from tasks.model_tasks.audio.ctc import TOKENIZER_FILE, VOCABULARY_FILE, CtcDecoder, read_decoder
from tasks.model_tasks.audio.word_errors import CHARACTER_ERROR_RATE, WORD_ERROR_RATE
from tasks.model_tasks.contract import Answers, EncodedSizes, Encoder, Feed, Metric, ShownAnswer
from tasks.model_tasks.inputs.audio import EXTRACTOR_FILE, AudioEncoder, measure_audio, open_audio_encoder
from tasks.model_tasks.inputs.texts import is_text
from tasks.model_tasks.inputs.written import encode_answers
from tasks.model_tasks.labels import check_head, show_value

# Their encoder and decoder are two graphs, which call each other for every word.
TWO_GRAPHS = ("whisper", "speech_to_text", "speech-encoder-decoder", "moonshine", "speecht5")


@dataclass(frozen=True)
class SpeechEncoder:
    """Encodes audio, and decodes what a network hears in it."""

    audio: AudioEncoder
    decoder: CtcDecoder

    def encode(self, inputs: Sequence[bytes]) -> Feed:
        """Return float32 [len(inputs), samples of the longest]; shorter rows are padded behind."""
        return self.audio.encode(inputs)

    def batches(self, inputs: Sequence[bytes], size: int) -> Iterator[tuple[list[int], list[bytes]]]:
        """Yield audio of similar length together."""
        return self.audio.batches(inputs, size)

    def decode(self, logits: NDArray[Any], inputs: Sequence[bytes]) -> list[str]:
        """Return the transcript of each row of logits [batch, frames, tokens], without the frames of the padding."""
        lengths = [self.audio.count_samples(content) for content in inputs]
        frames = [-(-logits.shape[1] * length // max(lengths)) for length in lengths]
        return [self.decoder.decode(row[:count]) for row, count in zip(logits, frames, strict=True)]


@dataclass(frozen=True)
class Transcript:
    """What was heard in an audio file."""

    audio: str
    transcript: str

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.transcript or '(nothing heard)'}  {self.audio}"


@dataclass(frozen=True)
class SpeechRecognition(AudioTask):
    """A transcript per audio file; output 0 of the graph is logits [batch, frames, tokens]."""

    name: str = "automatic-speech-recognition"
    columns: tuple[str, ...] = ("audio", "transcript")
    row_needs: str = "audio that can be decoded and a transcript"
    export_task: str = "automatic-speech-recognition"
    metrics: tuple[Metric, ...] = (WORD_ERROR_RATE, CHARACTER_ERROR_RATE)
    answer_axes: tuple[str, ...] = ("batch", "frames", "tokens")
    serving_files: tuple[str, ...] = (EXTRACTOR_FILE, VOCABULARY_FILE, TOKENIZER_FILE)

    def read_row(self, row: Mapping[str, Any], _classes: Sequence[str] | None) -> tuple[bytes, str] | None:
        """Return (audio file, transcript) where the audio can be decoded, and there are words."""
        audio, transcript = row["audio"], row["transcript"]
        return (audio, transcript) if is_text(transcript) and is_audio(audio) else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the audio or the transcript of a row."""
        return explain_audio(row["audio"]) or (
            f"the transcript is {show_value(row['transcript'])}: name the column with the words in data.transcript"
        )

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint reads a waveform and gives a token for each frame of it.

        Raises:
            BadInput: it reads something else, writes with a decoder, or has another head or none.
        """
        if config.get("model_type") in TWO_GRAPHS or config.get("is_encoder_decoder"):
            advice = "; use task: speech-to-text" if config.get("model_type") == "whisper" else ""
            raise BadInput(
                f"the checkpoint is a {str(config.get('model_type'))[:60]}, whose encoder and decoder are two graphs: "
                f"{self.name} takes CTC models of one graph, such as wav2vec2{advice}"
            )
        check_head(config, self.name, "ForCTC")

    def fixed_sizes(self, folder: Path) -> dict[str, int]:
        """Return no sizes: rows differ in length.

        Raises:
            BadInput: there is no feature extractor, or no vocabulary.
        """
        read_decoder(folder)
        return super().fixed_sizes(folder)

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> SpeechEncoder:  # type: ignore[override]
        """Open the folder's feature extractor and vocabulary."""
        return SpeechEncoder(open_audio_encoder(folder, input_names, largest), read_decoder(folder))

    def measure_inputs(self, folder: Path, inputs: Sequence[bytes], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode audio with the folder's feature extractor, which nobody has tried; tokens are its vocabulary's."""
        decoder = read_decoder(folder)
        measure_audio(folder, inputs, largest)
        return EncodedSizes((), max(decoder.tokens))

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[bytes], encoder: Encoder) -> Answers:
        """Return the transcript of each file as UTF-8, uint8 [bytes]."""
        return encode_answers(_decode(outputs, inputs, encoder))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],
        questions: Sequence[str],
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the transcript of each file."""
        texts = _decode(outputs, inputs, encoder)
        return [Transcript(file, text) for file, text in zip(questions, texts, strict=True)]


def _decode(outputs: Sequence[NDArray[Any]], inputs: Sequence[bytes], encoder: Encoder) -> list[str]:
    if not isinstance(encoder, SpeechEncoder):
        raise TypeError(f"{type(encoder).__name__} is no encoder of speech")
    return encoder.decode(outputs[0], inputs)


AUTOMATIC_SPEECH_RECOGNITION = SpeechRecognition()
