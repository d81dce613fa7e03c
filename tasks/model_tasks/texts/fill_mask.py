"""Masked language models: which token stands behind a mask; judged by top-1 accuracy, with pseudo-perplexity beside it.

A text that has no mask gets one, over one of its tokens, which a digest of the text chooses: the same one for every
engine. One token a row is a sample of what the pseudo-perplexity of Salazar et al. (2020, "Masked Language Model
Scoring", https://aclanthology.org/2020.acl-main.240) masks one after another; each row counts as much as any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration_data.reader import Rows
from registry.errors import BadInput
from registry.records import ModelSource
from tasks.model_tasks.contract import Answers, EncodedSizes, Encoder, Feed, Metric, OfSums, Scores, ShownAnswer
from tasks.model_tasks.inputs.texts import TextEncoder, is_text, measure_texts, open_text_encoder
from tasks.model_tasks.labels import check_head, show_value
from tasks.model_tasks.scores import compute_ratio
from tasks.model_tasks.texts.text_task import TextTask

# tokenizer.json does not say which of its tokens is the mask: BERT's and RoBERTa's descendants have one of these.
MASKS = ("[MASK]", "<mask>")
# A mean of more nats than this is no perplexity that a float holds.
MOST_NATS = 700.0
SHOWN_TOKENS = 3
MaskedText = str | tuple[str, str]
"""A text of which a token is masked here, or a text with a mask and the token that stands behind it."""


def score_top_1(answers: Answers, _targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return 1 where the masked token is the most likely one, else 0, [rows, 1]."""
    return np.asarray(answers, dtype=np.float64)[:, :1]


def score_nats(answers: Answers, _targets: Sequence[Any], _reference: Answers) -> Scores:
    """Return (-log probability of the masked token, 1) of each row, [rows, 2]."""
    nats = -np.asarray(answers, dtype=np.float64)[:, 1]
    return np.stack([nats, np.ones_like(nats)], axis=1)


def compute_perplexity(sums: Scores) -> Scores:
    """Return exp of the mean of `score_nats`."""
    perplexity: Scores = np.exp(np.minimum(compute_ratio(sums), MOST_NATS))
    return perplexity


TOP_1_ACCURACY = Metric("top_1_accuracy", "share", score_top_1)
PSEUDO_PERPLEXITY = Metric(
    "pseudo_perplexity", "perplexity", score_nats, OfSums(compute_perplexity), higher_is_better=False
)


@dataclass(frozen=True)
class MaskedTokens:
    """One masked token per text: its position among the tokens, its id, and where in the text it stands."""

    positions: tuple[int, ...]
    ids: tuple[int | None, ...]
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class MaskEncoder:
    """Encodes texts, each with one masked token."""

    texts: TextEncoder
    mask: int

    def encode(self, inputs: Sequence[MaskedText]) -> Feed:
        """Return int64 arrays [len(inputs), longest text in tokens]; in each row the mask stands for one token.

        Raises:
            BadInput: a text has no token to mask, or its mask stands behind the longest sequence.
        """
        return self._mask(inputs)[0]

    def find_masked(self, inputs: Sequence[MaskedText]) -> MaskedTokens:
        """Return which tokens `encode` masks.

        Raises:
            BadInput: as `encode`.
        """
        return self._mask(inputs)[1]

    def batches(self, inputs: Sequence[Any], size: int) -> Iterator[tuple[list[int], list[Any]]]:
        """Yield texts of similar length together."""
        for positions, _ in self.texts.batches([_text_of(each) for each in inputs], size):
            yield positions, [inputs[position] for position in positions]

    def name_token(self, number: int) -> str:
        """Return the text of a token."""
        return str(self.texts.tokenizer.decode([number], skip_special_tokens=False)).strip()

    def _mask(self, inputs: Sequence[MaskedText]) -> tuple[Feed, MaskedTokens]:
        encodings = self.texts.tokenizer.encode_batch([_text_of(each) for each in inputs])
        feed = dict(self.texts.collect(encodings))
        ids = feed["input_ids"] = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        found: list[tuple[int, int | None]] = []
        for row, (row_input, encoding) in enumerate(zip(inputs, encodings, strict=True)):
            position = self._choose(_text_of(row_input), encoding.ids, encoding.special_tokens_mask)
            token = None if isinstance(row_input, str) else self._number(row_input[1])
            if ids[row, position] != self.mask:
                token = int(ids[row, position])
            found.append((position, token))
            ids[row, position] = self.mask
        positions, tokens = zip(*found, strict=True)
        places = tuple(encoding.offsets[at] for encoding, at in zip(encodings, positions, strict=True))
        return {name: feed[name] for name in self.texts.input_names}, MaskedTokens(positions, tokens, places)

    def _choose(self, text: str, ids: Sequence[int], special: Sequence[int]) -> int:
        """Return the position of the text's first mask, or of the token to be masked."""
        if self.mask in ids:
            return ids.index(self.mask)
        if any(mask in text for mask in MASKS):
            raise BadInput(
                f"{show_value(text)} has no {self.name_token(self.mask)} among its first {len(ids)} tokens: the "
                "tokenizer knows no other mask, and a text is cut at data.max_length"
            )
        tokens = [position for position, is_special in enumerate(special) if not is_special]
        if not tokens:
            raise BadInput(f"{show_value(text)} has no token that could be masked: remove the row")
        return tokens[int.from_bytes(sha256(text.encode("utf-8", "replace")).digest()[:8]) % len(tokens)]

    def _number(self, token: str) -> int:
        """Return the id of the token behind a mask that a row has.

        Raises:
            BadInput: it is no single token.
        """
        tokenizer = self.texts.tokenizer
        number = tokenizer.token_to_id(token)
        ids = [number] if number is not None else tokenizer.encode(token, add_special_tokens=False).ids
        tokens = [each for each in ids if each != (tokenizer.padding or {}).get("pad_id")]
        if len(tokens) != 1:
            raise BadInput(f"{show_value(token)} is {len(tokens)} tokens, and a mask stands for one: remove the row")
        return int(tokens[0])


def _text_of(row_input: MaskedText) -> str:
    return row_input if isinstance(row_input, str) else row_input[0]


def compute_log_probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the log softmax over the last axis, float64."""
    import scipy  # not where a release is planned, or placed into Triton

    result: NDArray[np.float64] = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    return result


@dataclass(frozen=True)
class FilledMask:
    """A text with a mask, and the tokens that are most likely there."""

    text: str
    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def line(self) -> str:
        """The answer for a terminal."""
        shown = ", ".join(
            f"{token} ({share:.0%})" for token, share in zip(self.tokens, self.probabilities, strict=True)
        )
        return f"{shown}  {self.text}"


@dataclass(frozen=True)
class FillMask(TextTask):
    """Logits of each token over the vocabulary; of a row only those of its masked token are looked at."""

    name: str = "fill-mask"
    columns: tuple[str, ...] = ("text",)
    optional_columns: tuple[str, ...] = ("token",)
    answer_axes: tuple[str, ...] = ("batch", "sequence", "vocabulary")
    row_needs: str = "a text that is not empty; with data.token, a mask in it and the token behind that"
    export_task: str = "fill-mask"
    metrics: tuple[Metric, ...] = (TOP_1_ACCURACY, PSEUDO_PERPLEXITY)

    def read_row(self, row: Mapping[str, Any], _classes: Sequence[str] | None) -> tuple[MaskedText, None] | None:
        """Return (text, None), or ((text, token), None) where the dataset has a column of tokens."""
        text = row["text"]
        if not is_text(text):
            return None
        if "token" not in row:
            return None if any(mask in text for mask in MASKS) else (text, None)
        has_mask = any(mask in text for mask in MASKS)
        return ((text, row["token"]), None) if has_mask and is_text(row["token"]) else None

    def explain_row(self, row: Mapping[str, Any]) -> str:
        """Return what is wrong with the text or the token of a row."""
        text = row["text"]
        if not is_text(text):
            return f"the text is {show_value(text)}: name the column of the texts in data.text"
        if "token" not in row:
            return f"the text {show_value(text)} has a mask: name the column of what stands behind it in data.token"
        if not any(mask in text for mask in MASKS):
            return f"the text {show_value(text)} has no mask ({' or '.join(MASKS)}): remove data.token"
        return f"the token is {show_value(row['token'])}: name the column of the tokens in data.token"

    def align_rows(self, rows: Rows, source: ModelSource) -> Rows:  # noqa: ARG002
        """Return the rows as they are."""
        return rows

    def check_checkpoint(self, config: Mapping[str, Any]) -> None:
        """Check that the checkpoint is a masked language model.

        Raises:
            BadInput: it has another head, or none.
        """
        check_head(config, self.name, "ForMaskedLM")

    def open_encoder(self, folder: Path, input_names: Sequence[str], largest: Mapping[str, int]) -> MaskEncoder:
        """Open the folder's tokenizer.json; texts are cut at the longest sequence.

        Raises:
            BadInput: as for any text, or the tokenizer has no mask.
        """
        texts = open_text_encoder(folder, input_names, largest)
        mask = next((mask for mask in MASKS if texts.tokenizer.token_to_id(mask) is not None), None)
        if mask is None:
            raise BadInput(
                f"{folder / 'tokenizer.json'} has no token {' or '.join(MASKS)}: use the checkpoint of a masked "
                "language model with its own tokenizer"
            )
        number = texts.tokenizer.token_to_id(mask)
        if number not in texts.tokenizer.get_added_tokens_decoder():
            texts.tokenizer.add_special_tokens([mask])  # else it is read as a word in brackets
        return MaskEncoder(texts, number)

    def measure_inputs(self, folder: Path, inputs: Sequence[Any], largest: Mapping[str, int]) -> EncodedSizes:
        """Encode the texts with the folder's tokenizer.json, which nobody has tried, and mask a token of each."""
        sizes = measure_texts(folder, [_text_of(each) for each in inputs], largest)
        self.open_encoder(folder, ("input_ids",), largest).encode(inputs)
        return sizes

    def write_request(self, row_input: MaskedText) -> bytes:
        """Return the text as UTF-8."""
        return _text_of(row_input).encode()

    def reduce_outputs(
        self, outputs: Sequence[NDArray[Any]], inputs: Sequence[MaskedText], encoder: Encoder
    ) -> Sequence[NDArray[Any]]:
        """Return the log probabilities of the token behind each mask and of the most likely one, float64 [rows, 2].

        Raises:
            BadInput: a text has a mask, and no token behind it.
        """
        masked = _of_masks(encoder).find_masked(inputs)
        if None in masked.ids:
            raise BadInput(f"{show_value(inputs[masked.ids.index(None)])} has a mask and no token behind it: name one")
        rows = np.arange(len(inputs))
        chances = compute_log_probabilities(outputs[0][rows, list(masked.positions)])
        kept = np.stack([chances[rows, np.array(masked.ids, dtype=np.int64)], chances.max(axis=1)], axis=1)
        return [kept, *outputs[1:]]

    def answers(self, outputs: Sequence[NDArray[Any]], inputs: Sequence[MaskedText], encoder: Encoder) -> Answers:  # noqa: ARG002
        """Return for each text whether the masked token is the most likely, and its log probability, float64 [2]."""
        return [np.array([masked == best, masked], dtype=np.float64) for masked, best in outputs[0]]

    def show(
        self,
        outputs: Sequence[NDArray[Any]],
        inputs: Sequence[MaskedText],
        questions: Sequence[str],  # noqa: ARG002
        classes: Sequence[str],  # noqa: ARG002
        encoder: Encoder,
    ) -> list[ShownAnswer]:
        """Return the likeliest tokens for the mask of each text; one without a mask gets one first."""
        masks = _of_masks(encoder)
        masked = masks.find_masked(inputs)
        shown: list[ShownAnswer] = []
        texts = map(_text_of, inputs)
        for row, (text, position, (start, end)) in enumerate(zip(texts, masked.positions, masked.places, strict=True)):
            chances = np.exp(compute_log_probabilities(outputs[0][row, position]))
            best = np.argsort(-chances, kind="stable")[:SHOWN_TOKENS].tolist()
            hidden = f"{text[:start]}{masks.name_token(masks.mask)}{text[end:]}"
            shown.append(
                FilledMask(hidden, tuple(map(masks.name_token, best)), tuple(float(chances[each]) for each in best))
            )
        return shown


def _of_masks(encoder: Encoder) -> MaskEncoder:
    if not isinstance(encoder, MaskEncoder):
        raise TypeError(f"{type(encoder).__name__} masks no tokens")
    return encoder


FILL_MASK = FillMask()
