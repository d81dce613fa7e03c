"""Transcripts that a decoder writes: which checkpoints are taken, and word errors behind Whisper's normalizer."""

from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from registry.errors import BadInput
from tasks.model_tasks.audio.speech_recognition import AUTOMATIC_SPEECH_RECOGNITION
from tasks.model_tasks.audio.speech_to_text import SPEECH_TO_TEXT
from tasks.model_tasks.audio.word_errors import (
    NORMALIZED_CHARACTER_ERROR_RATE,
    NORMALIZED_WORD_ERROR_RATE,
    WORD_ERROR_RATE,
)
from tasks.model_tasks.contract import Answers
from tasks.model_tasks.texts.text2text_generation import TEXT2TEXT_GENERATION
from tests.support.tiny import SPECIAL, WORDS
from tests.support.writers import END, PAD, save_whisper

WHISPER = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "is_encoder_decoder": True,
    "max_target_positions": 32,
}


def as_answers(texts: list[str]) -> Answers:
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


def test_case_and_punctuation_are_no_errors() -> None:
    wanted = ["Seven, two!", "It's a film.", "good music"]
    written = as_answers(["seven two", "it's a film", "good (noise) fil"])
    metric = NORMALIZED_WORD_ERROR_RATE
    scores = metric.score(written, wanted, written)
    assert scores[:2, 0].tolist() == [0, 0]
    assert scores[2].tolist() == [1, 2]
    assert metric.figure(scores) == pytest.approx(
        jiwer.wer(["seven two", "it s a film", "good music"], ["seven two", "it s a film", "good fil"])
    )
    assert WORD_ERROR_RATE.score(written, wanted, written)[0, 0] == 2
    letters = NORMALIZED_CHARACTER_ERROR_RATE.score(written, wanted, written)
    assert letters[:, 0].tolist() == [0, 0, 4]


def test_a_transcript_of_which_the_normalizer_leaves_nothing_counts_what_was_heard() -> None:
    written, wanted = as_answers(["two words", "..."]), ["!?", "(noise)"]
    assert NORMALIZED_WORD_ERROR_RATE.score(written, wanted, written).tolist() == [[2, 0], [0, 0]]
    assert NORMALIZED_CHARACTER_ERROR_RATE.score(written, wanted, written).tolist() == [[9, 0], [0, 0]]


def test_a_whisper_is_taken_here_and_shown_the_way_elsewhere() -> None:
    SPEECH_TO_TEXT.check_checkpoint(WHISPER)
    for task in (AUTOMATIC_SPEECH_RECOGNITION, TEXT2TEXT_GENERATION):
        with pytest.raises(BadInput, match="use task: speech-to-text"):
            task.check_checkpoint(WHISPER)
    with pytest.raises(BadInput, match="use task: automatic-speech-recognition"):
        SPEECH_TO_TEXT.check_checkpoint({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]})


@pytest.mark.parametrize(("new_tokens", "is_taken"), [(28, True), (29, False)])
def test_prompt_and_transcript_have_a_position_each(new_tokens: int, is_taken: bool) -> None:
    largest: dict[str, Any] = {"batch": 4, "new_tokens": new_tokens}
    if is_taken:
        SPEECH_TO_TEXT.check_shapes(WHISPER, largest)
        return
    with pytest.raises(BadInput, match="allow 29 new tokens, the checkpoint has positions for 28"):
        SPEECH_TO_TEXT.check_shapes(WHISPER, largest)


def test_what_was_written_is_shown_beside_its_file(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    assert SPEECH_TO_TEXT.fixed_sizes(tmp_path) == {"nb_max_frames": 100}
    encoder = SPEECH_TO_TEXT.open_encoder(tmp_path, ("input_features",), {"new_tokens": 8})
    numbers = {token: number for number, token in enumerate(SPECIAL + WORDS)}
    tokens = np.array([[numbers["good"], numbers["film"], END], [END, PAD, PAD]])
    outputs = [tokens, np.zeros(tokens.shape, dtype=np.float32)]
    shown = SPEECH_TO_TEXT.show(outputs, [b"", b""], ["a.wav", "b.wav"], (), encoder)
    assert [each.line for each in shown] == ["good film  a.wav", "(nothing heard)  b.wav"]
    answers = SPEECH_TO_TEXT.answers(outputs, [b"", b""], encoder)
    assert [answer.tobytes().decode() for answer in answers] == ["good film", ""]
