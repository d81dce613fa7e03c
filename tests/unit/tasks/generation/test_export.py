"""Two graphs write what transformers' greedy search writes: alone, in a batch, of any length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GenerationMixin

from registry.errors import BadInput, EngineryError
from tasks.generation.export import check_generation, export_parts
from tasks.generation.rules import read_rules
from tasks.generation.trial import open_graphs
from tests.support.writers import END, PAD, VOCABULARY, WRITERS, read_writer, save_whisper, save_writer

pytestmark = pytest.mark.slow
MOST = 9


def draw_feed(lengths: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Draw rows of these lengths, padded to the longest."""
    draw = np.random.default_rng(seed)
    mask = np.array([[position < length for position in range(max(lengths))] for length in lengths], dtype=np.int64)
    return {"input_ids": np.where(mask, draw.integers(5, VOCABULARY, mask.shape), PAD), "attention_mask": mask}


def write_with_torch(module: Any, feed: dict[str, Any], most: int = MOST) -> Any:
    given = {name: torch.from_numpy(values) for name, values in feed.items()}
    return module.generate(**given, max_new_tokens=most, num_beams=1, do_sample=False).numpy()


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_graphs_write_what_transformers_writes_greedily(kind: str, tmp_path: Path) -> None:
    module = save_writer(tmp_path / "checkpoint", kind)
    source = read_writer(tmp_path / "checkpoint")
    onnx = export_parts(source, into=tmp_path / "onnx")
    assert onnx.generation is not None
    session = open_graphs(onnx, MOST)
    for lengths in ((5,), (1,), (12, 3, 7), (2, 2)):
        feed = draw_feed(lengths)
        tokens, log_probs = session.run(feed)
        wanted = write_with_torch(module, feed)[:, len(onnx.generation.prompt) :]
        assert tokens.tolist() == wanted.tolist()
        assert (log_probs <= 0).all()
        for row, length in enumerate(lengths):
            alone = {name: values[row : row + 1, :length] for name, values in feed.items()}
            written = session.run(alone)[0][0]
            assert tokens[row, : len(written)].tolist() == written.tolist()
            assert set(tokens[row, len(written) :].tolist()) <= {PAD}
    check_generation(source, onnx, [draw_feed((4, 9))], MOST)


def test_tokens_that_are_forced_or_never_written_are_transformers_own(tmp_path: Path) -> None:
    free = save_writer(tmp_path / "free", "bart")
    feed = draw_feed((6, 11, 4))
    usual = sorted({*write_with_torch(free, feed)[:, 1:].ravel().tolist()} - {END, PAD})
    assert 8 not in usual
    steered = save_writer(
        tmp_path / "checkpoint",
        "bart",
        forced_bos_token_id=8,
        suppress_tokens=usual[:1],
        begin_suppress_tokens=usual[1:2],
    )
    onnx = export_parts(read_writer(tmp_path / "checkpoint"), into=tmp_path / "onnx")
    assert onnx.generation is not None
    assert onnx.generation.prompt == (END, 8)
    assert onnx.generation.suppressed == tuple(usual[:1])
    # transformers counts the forced token as a new one.
    wanted = write_with_torch(steered, feed, MOST + 1)[:, 2:]
    tokens, _ = open_graphs(onnx, MOST).run(feed)
    assert tokens.tolist() == wanted.tolist()
    assert usual[0] not in tokens


def test_graphs_of_other_weights_are_refused(tmp_path: Path) -> None:
    save_writer(tmp_path / "one" / "checkpoint")
    save_writer(tmp_path / "other" / "checkpoint", seed=1)
    one, other = (read_writer(tmp_path / name / "checkpoint") for name in ("one", "other"))
    onnx = export_parts(one, into=tmp_path / "onnx")
    with pytest.raises(EngineryError, match="the logits differ from PyTorch's"):
        check_generation(other, onnx, [draw_feed((4, 9))], MOST)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [({"decoder_start_token_id": None, "bos_token_id": None}, "which token its decoder starts with"),
     ({"eos_token_id": [END, 500]}, "names the token 500"), ({"suppress_tokens": ["the"]}, "names the token 'the'")],
)  # fmt: skip
def test_a_generation_that_is_told_wrongly_is_refused(said: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    module = WRITERS["t5"]()
    for name, value in said.items():
        setattr(module.generation_config, name, value)
    with pytest.raises(BadInput, match=sentence):
        read_rules(module)


@pytest.mark.parametrize(
    ("said", "prompt"),
    [
        ({}, (2, 4)),
        ({"forced_decoder_ids": [[1, 6], [2, 7], [3, 4]]}, (2, 6, 7, 4)),
        (
            {
                "is_multilingual": True, "language": "en", "lang_to_id": {"<|en|>": 9, "<|de|>": 10},
                "task_to_id": {"transcribe": 11, "translate": 12},
            },
            (2, 9, 11, 4),
        ),
    ],
)  # fmt: skip
def test_whisper_writes_what_transformers_writes_behind_its_prompt(
    said: dict[str, Any], prompt: tuple[int, ...], tmp_path: Path
) -> None:
    module = save_whisper(tmp_path / "checkpoint", **said)
    source = read_writer(tmp_path / "checkpoint", "speech-to-text")
    onnx = export_parts(source, into=tmp_path / "onnx")
    assert onnx.generation is not None
    assert onnx.generation.prompt == prompt
    feed = {"input_features": np.random.default_rng(0).standard_normal((3, 16, 100)).astype(np.float32)}
    tokens, _ = open_graphs(onnx, MOST).run(feed)
    # The plain search, without Whisper's own one around it, which cuts audio into windows.
    with torch.inference_mode():
        wanted = GenerationMixin.generate(
            module, torch.from_numpy(feed["input_features"]), decoder_input_ids=torch.tensor([prompt] * 3),
            generation_config=GenerationConfig(
                max_new_tokens=MOST, num_beams=1, do_sample=False, eos_token_id=END, pad_token_id=PAD
            ),
        ).numpy()[:, len(prompt) :]  # fmt: skip
    assert tokens.tolist() == wanted.tolist()
    check_generation(source, onnx, [feed], MOST)


def test_whisper_of_several_languages_that_names_none_is_refused(tmp_path: Path) -> None:
    module = save_whisper(tmp_path / "checkpoint", is_multilingual=True, lang_to_id={"<|en|>": 9})
    with pytest.raises(BadInput, match="does not say which it hears"):
        read_rules(module)
