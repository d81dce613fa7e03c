"""Greedy generation with the sessions of an encoder and a decoder: at each step the likeliest token, no beams."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from registry.errors import BadInput
from registry.records import Generation
from tasks.generation.parts import DECODER, ENCODER, PAST, PRESENT, WRITTEN

Array = NDArray[Any]
Feed = Mapping[str, Array]


class Runs(Protocol):
    """A loaded graph or engine that can run."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """The tensors that `run` must be fed."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The tensors that `run` returns, in this order."""

    def run(self, feed: Feed) -> list[Array]:
        """Return the outputs, on the host."""


@dataclass(frozen=True)
class Step:
    """One run of the decoder: its feed, and the logits [batch, vocabulary] that it gave.

    `tokens` int64 and `log_probs` float32, both [batch], are what was chosen; None while the prompt is read.
    """

    feed: dict[str, Array]
    logits: Array
    tokens: NDArray[np.int64] | None = None
    log_probs: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class GreedySession:
    """A session that writes at most `most` tokens for each row; `exactly` so many where that is asked for.

    The past goes from the decoder's outputs to its inputs through host arrays.
    """

    sessions: Mapping[str, Runs]
    generation: Generation
    most: int
    exactly: bool = False

    @property
    def input_names(self) -> tuple[str, ...]:
        """The encoder's inputs."""
        return tuple(tensor.name for tensor in self.generation.part(ENCODER).inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of `WRITTEN`."""
        return tuple(tensor.name for tensor in WRITTEN)

    def run(self, feed: Feed) -> list[Array]:
        """Return tokens int64 and their log-probabilities float32, both [batch, steps]; behind a row's end padding.

        Raises:
            BadInput: the feed does not fit the encoder.
        """
        steps = [(step.tokens, step.log_probs) for step in self.steps(feed) if step.tokens is not None]
        return [np.stack(column, axis=1) for column in zip(*steps, strict=True)]

    def steps(self, feed: Feed) -> Iterator[Step]:
        """Yield each run of the decoder until all rows have ended, or have `most` tokens.

        Raises:
            BadInput: as `run`.
        """
        if missing := sorted(set(self.input_names) - feed.keys()):
            raise BadInput(f"the engine needs the input {', '.join(missing)}; the feed has {', '.join(feed)}")
        rules, rows = self.generation, len(next(iter(feed.values())))
        encoded, past = self._encode(feed), self._make_empty_past(rows)
        tokens, has_ended = np.full(rows, rules.prompt[0], np.int64), np.zeros(rows, bool)
        for read in range(1, len(rules.prompt) + self.most):
            decoder_feed = self._bind({**encoded, **past, "input_ids": tokens[:, None]})
            logits, past = self._decode(decoder_feed)
            if read < len(rules.prompt):
                tokens = np.full(rows, rules.prompt[read], np.int64)
                yield Step(decoder_feed, logits)
                continue
            tokens, log_probs = self._choose(logits, has_ended, is_first=read == len(rules.prompt))
            yield Step(decoder_feed, logits, tokens, log_probs)
            if not self.exactly:
                has_ended |= np.isin(tokens, rules.ends)
            if has_ended.all():
                return

    def _encode(self, feed: Feed) -> dict[str, Array]:
        """Return what the decoder attends to, by the names of its inputs."""
        encoder = self.sessions[ENCODER]
        outputs = encoder.run({name: feed[name] for name in encoder.input_names})
        encoded = dict(zip(encoder.output_names, outputs, strict=True))
        mask = feed.get("attention_mask")
        return encoded if mask is None else encoded | {"encoder_attention_mask": mask}

    def _make_empty_past(self, rows: int) -> dict[str, Array]:
        """Return a past of no tokens for each input of the decoder that the encoder does not give."""
        given = {tensor.name for tensor in self.generation.part(ENCODER).outputs}
        return {
            tensor.name: np.zeros(
                [rows, *(size if isinstance(size, int) else 0 for size in tensor.shape[1:])], tensor.dtype
            )
            for tensor in self.generation.part(DECODER).inputs
            if tensor.name.startswith(PAST) and tensor.name not in given
        }

    def _bind(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the decoder takes of some values: an engine has no input that it does not use."""
        return {name: values[name] for name in self.sessions[DECODER].input_names}

    def _decode(self, feed: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """Return the logits of the next token, [batch, vocabulary], and the past of the next step."""
        decoder = self.sessions[DECODER]
        outputs = dict(zip(decoder.output_names, decoder.run(feed), strict=True))
        past = {
            f"{PAST}{name.removeprefix(PRESENT)}": values
            for name, values in outputs.items()
            if name.startswith(PRESENT)
        }
        return outputs["logits"][:, -1], past

    def _choose(
        self, logits: Array, has_ended: NDArray[np.bool_], *, is_first: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return each row's likeliest token that may be written, and its log-probability among all tokens.

        Logits that are not a number give a log-probability that is none.
        """
        rules, scores = self.generation, logits.astype(np.float64)
        allowed = scores.copy()
        allowed[:, [*rules.suppressed, *(rules.suppressed_first if is_first else ())]] = -np.inf
        best = allowed.argmax(axis=-1)
        import scipy  # its parts load on first use

        log_probs = scipy.special.log_softmax(scores, axis=-1)[np.arange(len(best)), best]
        tokens = np.where(has_ended, rules.padding, best).astype(np.int64)
        return tokens, np.where(has_ended, 0.0, log_probs).astype(np.float32)
