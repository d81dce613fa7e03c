"""Generation of text from text, such as translations and summaries: an encoder and a decoder write token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import NEW_TOKENS, ModelSource
from tasks.model_tasks.contract import Answers, Encoder, Metric, ShownAnswer
from tasks.model_tasks.inputs.texts import check_positions, is_text, open_text_encoder
from tasks.model_tasks.inputs.written import WritingEncoder, decode_written, encode_answers
from tasks.model_tasks.labels import check_head, show_value
from tasks.model_tasks.texts.text_task import TextTask
from tasks.model_tasks.texts.written_scores import BLEU_4, CHRF, ROUGE_L

# How the names of transformers' encoder-decoders for texts end.
HEADS = ("ForConditionalGeneration", "MTModel")


@dataclass(frozen=True)
class WrittenText:
    """What was written of a text."""

    text: str
    written: str

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        return f"{self.written or '(nothing written)'}  {self.text}"


@dataclass(frozen=True)
class Text2TextGeneration(TextTask):
    """A text per text; output 0 is the tokens [batch, new tokens], output 1 the logarithm of their probability."""

    name: str = "text2text-generation"
    columns: tuple[str, ...] = ("text", "target")
    row_needs: str = "two texts that are not empty"
    axes: tuple[str, ...] = ("batch", "sequence", NEW_TOKENS)
    export_task: str = "text2text-generation-with-past"
    metrics: tuple[Metric, ...] = (CHRF, BLEU_4, ROUGE_L)
    judged_outputs: tuple[int, ...] = (0, 1)
    answer_axes: tuple[str, ...] = ("batch", NEW_TOKENS)

    def read_row(self, row: Mapping[str, Any], _classes: Sequence[str] | None) -> tuple[str, str] | None:
        """Return (text, target) where both have words."""
        text, target = row["text"], row["target"]
        return (text, target) if is_text(text) and is_text(target) else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return which text of a row is none."""
        column = "target" if is_text(row["text"]) else "text"
        return f"the {column} is {show_value(row[column])}: name the column of the texts in data.{column}"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint is an encoder and a decoder for texts.

        Raises:
            BadInput: it is another one.
        """
        check_head(config, self.name, HEADS)
        if config.get("model_type") == "whisper":
            raise BadInput("the checkpoint is a whisper, which reads audio: use task: speech-to-text")
        if not config.get("is_encoder_decoder"):
            raise BadInput(
                f"the checkpoint is a {str(config.get('model_type'))[:60]}, which has no encoder and decoder: "
                f"{self.name} takes models such as T5, BART and Marian"
            )

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check that the checkpoint has a position for each token that is read, and for each that is written."""
        check_positions(config, largest)
        positions, longest = config.get("max_position_embeddings"), largest.get(NEW_TOKENS, 0)
        if isinstance(positions, int) and 0 < positions < longest:
            raise BadInput(
                f"the profiles allow {longest} new tokens, the checkpoint has positions for {positions}: lower the max "
                f"of {NEW_TOKENS}"
            )

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> WritingEncoder:
        """Open the folder's tokenizer.json; texts are cut at the longest sequence."""
        texts = open_text_encoder(folder, input_names, largest)
        return WritingEncoder(texts, texts.tokenizer)

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[Any], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return the text written for each input as UTF-8, uint8 [bytes]."""
        return encode_answers(decode_written(outputs, encoder))

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        questions: Sequence[str],
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the text written for each question."""
        return [WrittenText(*pair) for pair in zip(questions, decode_written(outputs, encoder), strict=True)]


TEXT2TEXT_GENERATION = Text2TextGeneration()
