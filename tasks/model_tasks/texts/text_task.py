"""What tasks have in common whose rows are texts, read by the checkpoint's tokenizer.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import EncodedSizes, Encoder, GraphInputs
from tasks.model_tasks.inputs.texts import (
    EXAMPLE_TEXTS,
    TOKEN_INPUTS,
    TOKENIZER,
    TextEncoder,
    check_positions,
    check_text,
    measure_texts,
    open_text_encoder,
)

# Between the two texts of a pair on the command line.
BETWEEN = " ||| "


def split_pair(text: str, *, example: str) -> tuple[str, str]:
    """Return the two texts of "one ||| other".

    Raises:
        BadInput: there are not two; the message shows `example`.
    """
    first, found, second = text.partition(BETWEEN)
    if not found:
        raise BadInput(f'give two texts with {BETWEEN.strip()!r} between them, as in "{example}"')
    return first, second


@dataclass(frozen=True)
class TextTask:
    """A task whose input is one text; a task with other inputs overrides what makes feeds of them."""

    axes: tuple[str, ...] = ("batch", "sequence")
    graph_inputs: GraphInputs = TOKEN_INPUTS
    optional_columns: tuple[str, ...] = ()
    optional_axes: tuple[str, ...] = ()
    judged_outputs: tuple[int, ...] = (0,)
    answer_axes: tuple[str, ...] = ("batch", "labels")
    serving_files: tuple[str, ...] = (TOKENIZER,)
    request: str = "text"
    answer_file: str | None = None

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """A short text and a longer one."""
        return EXAMPLE_TEXTS

    def identify(self, row_input: Any) -> str:
        """Return the input's text without case and extra space."""
        text = row_input if isinstance(row_input, str) else " | ".join(row_input)
        return " ".join(text.casefold().split())

    def check_shapes(self, config: Mapping[str, Any], largest: Mapping[str, int]) -> None:
        """Check that the checkpoint has a position for each token of the longest text."""
        check_positions(config, largest)

    def check_rows(self, rows: Rows, source: ModelSource, folder: Path) -> None:
        """Check nothing: texts say nothing of their tokenizer."""

    def check_outputs(self, shapes: Sequence[Sequence[int]], classes: int, encoder: Encoder) -> None:
        """Check nothing: `answer_axes` say what outputs have."""

    def fixed_sizes(self, folder: Path) -> dict[str, int]:  # noqa: ARG002
        """Return none: texts have any length."""
        return {}

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> Any:
        """Open the folder's tokenizer.json; texts are cut at the longest sequence."""
        encoder: TextEncoder = open_text_encoder(folder, input_names, largest)
        return encoder

    def measure_inputs(self, folder: Path, inputs: Sequence[Any], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode the inputs' texts with the folder's tokenizer.json, which nobody has tried."""
        texts = [text for each in inputs for text in ((each,) if isinstance(each, str) else each)]
        return measure_texts(folder, texts, largest)

    def reduce_outputs(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[Any],  # noqa: ARG002
        encoder: Encoder,  # noqa: ARG002
    ) -> Sequence[NDArray[Any]]:
        """Return the outputs as they are: a row has few numbers."""
        return outputs

    def read_question(self, text: str) -> Any:
        """Return a text that is not empty, nor longer than any is read.

        Raises:
            BadInput: it is.
        """
        check_text(text)
        return text

    def read_request(self, content: bytes) -> tuple[str, Any]:
        """Return (text, input) of a text in UTF-8, which is what `read_question` reads.

        Raises:
            BadInput: it is not UTF-8, or has no answer.
        """
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"the text is not UTF-8 (byte {error.start} of {len(content)}): encode it so") from None
        return text, self.read_question(text)

    def write_request(self, row_input: Any) -> bytes:
        """Return a text as UTF-8, or the two of a pair with BETWEEN between them."""
        return (row_input if isinstance(row_input, str) else BETWEEN.join(row_input)).encode()
