"""Speech recognition behind the contract: letters as transformers reads them, and error rates as jiwer counts them."""

import json
import re
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from registry.errors import BadInput
from tasks.model_tasks.audio.ctc import read_decoder
from tasks.model_tasks.audio.speech_recognition import (
    AUTOMATIC_SPEECH_RECOGNITION,
    Transcript,
)
from tasks.model_tasks.audio.word_errors import CHARACTER_ERROR_RATE, WORD_ERROR_RATE
from tasks.model_tasks.contract import Answers
from tasks.model_tasks.inputs.audio import WAVEFORM
from tasks.verdicts.intervals import compare_scores
from tests.support.audio import LETTERS, draw_audio, save_extractor

SOUND = draw_audio(0)
CONFIG = {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]}
TARGETS = ("the good film", "a b c", "music", "Good Music")
HEARD = ("the food film", "b c d e", "", "good music")


def save_vocabulary(folder: Path, **settings: Any) -> Path:
    from transformers import Wav2Vec2CTCTokenizer

    numbers = {letter: number for number, letter in enumerate(LETTERS)}
    (folder / "vocab.json").write_text(json.dumps(numbers), encoding="utf-8")
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **settings).save_pretrained(folder)
    return folder


def as_answers(texts: tuple[str, ...]) -> Answers:
    return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


def as_logits(*rows: list[int]) -> Any:
    return np.eye(len(LETTERS), dtype=np.float32)[np.array(rows)]


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": True}, {"word_delimiter_token": "d"}])
def test_letters_are_those_of_transformers_less_the_special_tokens(settings: dict[str, Any], tmp_path: Path) -> None:
    from transformers import Wav2Vec2CTCTokenizer

    folder = save_vocabulary(tmp_path, **settings)
    theirs, ours = Wav2Vec2CTCTokenizer.from_pretrained(folder), read_decoder(folder)
    random = np.random.default_rng(0)
    rows = [random.choice(len(LETTERS), 40).tolist() for _ in range(50)]
    rows += [[5, 5, 0, 5, 6], [4, 4, 5, 4, 0, 4, 6, 4], [5, 1, 5, 3, 5], [0, 0, 0]]
    for row in rows:
        expected = re.sub("<s>|</s>|<unk>", "", theirs.decode(row)).strip()
        assert ours.decode(as_logits(row)[0]) == expected, row


def test_repetitions_are_one_letter_and_a_blank_parts_them(tmp_path: Path) -> None:
    decoder = read_decoder(save_vocabulary(tmp_path))
    assert decoder.decode(as_logits([5, 5, 0, 5, 4, 4, 6, 6, 3, 3])[0]) == "aa b"


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("vocab.json", None, "has no vocab.json: save the checkpoint with its Wav2Vec2CTCTokenizer"),
        ("vocab.json", {"eng": {"a": 1}}, "does not map tokens to whole numbers"),
        ("vocab.json", {"a": 0, "b": 0, "<pad>": 1}, "gives two tokens one number"),
        ("vocab.json", {"a": 0}, "has no '<pad>', the blank of CTC"),
        ("tokenizer_config.json", None, "has no tokenizer_config.json"),
        ("tokenizer_config.json", [1], "it is not a JSON object"),
        ("tokenizer_config.json", {"pad_token": 5}, "pad_token has another form"),
        ("tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer"}, "has the tokenizer WhisperTokenizer, and"),
    ],
)
def test_a_vocabulary_of_another_form_is_refused(file: str, content: Any, words: str, tmp_path: Path) -> None:
    save_vocabulary(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(words)):
        read_decoder(tmp_path)


def test_files_of_older_versions_write_tokens_as_objects(tmp_path: Path) -> None:
    save_vocabulary(tmp_path)
    old = {"pad_token": {"content": "<pad>", "lstrip": False}, "word_delimiter_token": "|"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(old), encoding="utf-8")
    assert read_decoder(tmp_path).decode(as_logits([0, 5, 4, 6])[0]) == "a b"


def test_error_rates_of_a_corpus_are_those_of_jiwer() -> None:
    references, heard = [text.lower() for text in TARGETS], list(HEARD)
    words = WORD_ERROR_RATE.score(as_answers(HEARD), TARGETS, ())
    assert words.tolist() == [[1.0, 3.0], [3.0, 3.0], [1.0, 1.0], [0.0, 2.0]]
    letters = CHARACTER_ERROR_RATE.score(as_answers(HEARD), TARGETS, ())
    for metric, scores, rate in ((WORD_ERROR_RATE, words, jiwer.wer), (CHARACTER_ERROR_RATE, letters, jiwer.cer)):
        assert metric.figure(scores) == pytest.approx(rate(references, heard))


def test_more_errors_than_fp32_are_a_loss() -> None:
    exact = WORD_ERROR_RATE.score(as_answers(TARGETS), TARGETS, ())
    heard = WORD_ERROR_RATE.score(as_answers(HEARD), TARGETS, ())
    loss = compare_scores(exact, heard, WORD_ERROR_RATE.aggregate, higher_is_better=WORD_ERROR_RATE.higher_is_better)
    assert loss.loss == pytest.approx(5 / 9)
    assert loss.flips == 3


@pytest.mark.parametrize(
    ("audio", "transcript", "reason"),
    [
        ("a.wav", "good", "the audio is str 'a.wav': name the column with the bytes of audio files in data.audio"),
        (SOUND, "  ", "the transcript is str '  ': name the column with the words in data.transcript"),
        (SOUND, 3, "the transcript is int 3"),
    ],
)
def test_a_row_has_audio_and_words(audio: Any, transcript: Any, reason: str) -> None:
    row = {"audio": audio, "transcript": transcript}
    assert AUTOMATIC_SPEECH_RECOGNITION.read_row(row, None) is None
    assert re.search(reason, AUTOMATIC_SPEECH_RECOGNITION.explain_row(row))
    assert AUTOMATIC_SPEECH_RECOGNITION.read_row({"audio": SOUND, "transcript": "good"}, None) == (SOUND, "good")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "whisper"}, "is a whisper, whose encoder and decoder are two graphs"),
        ({"is_encoder_decoder": True}, "whose encoder and decoder are two graphs"),
        (
            {"architectures": ["Wav2Vec2ForSequenceClassification"]},
            "which has no head for automatic-speech-recognition",
        ),
        ({"model_type": "bert"}, "is a bert, and automatic-speech-recognition takes networks that read a waveform"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_by_its_config(config: dict[str, Any], words: str) -> None:
    AUTOMATIC_SPEECH_RECOGNITION.check_checkpoint(CONFIG)
    with pytest.raises(BadInput, match=words):
        AUTOMATIC_SPEECH_RECOGNITION.check_checkpoint(CONFIG | config)


def test_the_frames_of_the_padding_are_not_decoded(tmp_path: Path) -> None:
    encoder = AUTOMATIC_SPEECH_RECOGNITION.open_encoder(save_vocabulary(save_extractor(tmp_path)), [WAVEFORM], {})
    files = [draw_audio(0, 0.4), draw_audio(1, 0.2)]
    logits = as_logits([5, 0, 5, 0, 6, 7, 6, 7], [5, 6, 5, 6, 7, 7, 7, 7])
    answers = AUTOMATIC_SPEECH_RECOGNITION.answers([logits], files, encoder)
    assert [answer.tobytes().decode() for answer in answers] == ["aabcbc", "abab"]


def test_what_is_shown_is_the_transcript(tmp_path: Path) -> None:
    encoder = AUTOMATIC_SPEECH_RECOGNITION.open_encoder(save_vocabulary(save_extractor(tmp_path)), [WAVEFORM], {})
    logits = as_logits([5, 4, 6, 0], [0, 0, 0, 0])
    heard, nothing = AUTOMATIC_SPEECH_RECOGNITION.show([logits], [SOUND] * 2, ["a.wav"] * 2, (), encoder)
    assert heard == Transcript("a.wav", "a b")
    assert heard.line == "a b  a.wav"
    assert nothing.line == "(nothing heard)  a.wav"


def test_the_extractor_and_the_vocabulary_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"has no tokenizer_config\.json"):
        AUTOMATIC_SPEECH_RECOGNITION.fixed_sizes(tmp_path)
    save_extractor(save_vocabulary(tmp_path))
    assert AUTOMATIC_SPEECH_RECOGNITION.fixed_sizes(tmp_path) == {}
    sizes = AUTOMATIC_SPEECH_RECOGNITION.measure_inputs(tmp_path, (SOUND,), {})
    assert (sizes.tokens, sizes.largest_id) == ((), len(LETTERS) - 1)
