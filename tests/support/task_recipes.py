"""A recipe over a tiny random checkpoint for each model task: rows, columns and head as the task wants them."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tasks.model_tasks import model_task
from tests.support.audio import SOUNDS, draw_audio, save_listener, save_recognizer
from tests.support.images import (
    SHAPES,
    draw_boxes,
    draw_image,
    draw_mask,
    save_classifier,
    save_detector,
    save_segmenter,
)
from tests.support.tiny import SPECIAL, WORDS, write_tokenizer
from tests.support.tiny_recipe import FLEET, PROFILES, RECIPE, TinyRecipe
from tests.support.writers import save_whisper, save_writer

ROWS = 64
TAGS = ("O", "B-THING", "I-THING")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
Columns = dict[str, list[Any]]


def draw_texts(seed: int, count: int) -> list[str]:
    """Draw different texts of the tiny vocabulary."""
    draw = random.Random(seed)  # noqa: S311  # rows, not secrets
    words = [word for word in WORDS if not word.startswith("##")]
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(draw.choices(words, k=draw.randint(3, 12)))] = None
    return list(texts)


def save_bert(folder: Path, architecture: str, **settings: Any) -> None:
    """Save a random BERT with the head of an architecture, and its tokenizer."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, initializer_range=0.5, **SIZES, **settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, architecture)(config).save_pretrained(folder)
    write_tokenizer(folder)


def tag_words(texts: list[str]) -> Columns:
    """Tag the words behind an article as a thing."""
    rows = [text.split() for text in texts]
    behind = [[word in ("a", "the") for word in ["", *words][:-1]] for words in rows]
    return {"words": rows, "tags": [["B-THING" if article else "O" for article in row] for row in behind]}


def save_tagger(folder: Path) -> None:
    save_bert(folder, "BertForTokenClassification", id2label=dict(enumerate(TAGS)))


def save_encoder(folder: Path) -> None:
    """Save an encoder that pools as sentence-transformers does."""
    save_bert(folder, "BertModel")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")


def pair_texts(texts: list[str]) -> Columns:
    """Score pairs by the words that they share."""
    others = [" ".join(reversed(text.split()[: 1 + place % 5])) for place, text in enumerate(texts)]
    shared = [len(set(a.split()) & set(b.split())) for a, b in zip(texts, others, strict=True)]
    return {"text": texts, "text_pair": others, "score": [float(count) for count in shared]}


def rank_texts(texts: list[str]) -> Columns:
    """Rank three texts for the words of one of them."""
    queries = [" ".join(reversed(texts[at - at % 3].split())) for at in range(len(texts))]
    return {"query": queries, "text": texts, "score": [float(at % 3) for at in range(len(texts))]}


def save_comparer(folder: Path) -> None:
    save_bert(folder, "BertForSequenceClassification", id2label={0: "short", 1: "long"})


def compare_texts(texts: list[str]) -> Columns:
    """Label pairs by whether the second text is longer than a word."""
    pairs = pair_texts(texts)
    labels = ["long" if " " in text else "short" for text in pairs["text_pair"]]
    return {"text": pairs["text"], "text_pair": pairs["text_pair"], "label": labels}


def save_shapes(folder: Path) -> None:
    """Save a classifier of images, and beside its folder an image to ask it about."""
    save_classifier(folder)
    (folder.parent / "shape.png").write_bytes(draw_image(0))


def draw_shapes(texts: list[str]) -> Columns:
    """Draw an image for each text, of any size and mode."""
    drawn = [random.Random(text) for text in texts]  # noqa: S311  # rows, not secrets
    images = [
        draw_image(draw.getrandbits(32), (draw.randint(5, 40), draw.randint(5, 40)), draw.choice(("RGB", "L", "RGBA")))
        for draw in drawn
    ]
    return {"image": images, "label": [SHAPES[len(text) % len(SHAPES)] for text in texts]}


def save_maps(folder: Path) -> None:
    """Save a network that segments images, and beside its folder an image to ask it about."""
    save_segmenter(folder)
    (folder.parent / "shape.png").write_bytes(draw_image(0))


def draw_masks(texts: list[str]) -> Columns:
    """Draw an image for each text, of any size, and the mask of its bright and dark pixels."""
    drawn = [random.Random(text) for text in texts]  # noqa: S311  # rows, not secrets
    images = [draw_image(draw.getrandbits(32), (draw.randint(20, 40), draw.randint(20, 40))) for draw in drawn]
    return {"image": images, "mask": [draw_mask(image) for image in images]}


def save_boxes(folder: Path) -> None:
    """Save a network that finds boxes, and beside its folder an image to ask it about."""
    save_detector(folder)
    (folder.parent / "shape.png").write_bytes(draw_image(0))


def draw_objects(texts: list[str]) -> Columns:
    """Draw an image for each text, of any size, with boxes as the hub's datasets have them."""
    drawn = [random.Random(text) for text in texts]  # noqa: S311  # rows, not secrets
    images = [draw_image(draw.getrandbits(32), (draw.randint(20, 40), draw.randint(20, 40))) for draw in drawn]
    objects = [draw_boxes(image, draw.getrandbits(32)) for image, draw in zip(images, drawn, strict=True)]
    return {"image": images, "boxes": [boxes for boxes, _ in objects], "labels": [labels for _, labels in objects]}


def save_sounds(folder: Path) -> None:
    """Save a classifier of audio, and beside its folder a file to ask it about."""
    save_listener(folder)
    (folder.parent / "sound.wav").write_bytes(draw_audio(0))


def draw_sounds(texts: list[str]) -> Columns:
    """Draw audio for each text, of any length, rate and form."""
    drawn = [random.Random(text) for text in texts]  # noqa: S311  # rows, not secrets
    audio = [
        draw_audio(
            draw.getrandbits(32), draw.uniform(0.15, 0.4), rate=draw.choice((8000, 16_000)),
            channels=draw.choice((1, 2)), file_type=draw.choice(("WAV", "FLAC")),
        )
        for draw in drawn
    ]  # fmt: skip
    return {"audio": audio, "label": [SOUNDS[len(text) % len(SOUNDS)] for text in texts]}


def save_speech(folder: Path) -> None:
    """Save a CTC network, and beside its folder a file to ask it about."""
    save_recognizer(folder)
    (folder.parent / "sound.wav").write_bytes(draw_audio(0))


def save_transcriber(folder: Path) -> None:
    """Save a Whisper, and beside its folder a file to ask it about."""
    save_whisper(folder)
    (folder.parent / "sound.wav").write_bytes(draw_audio(0))


def speak_texts(texts: list[str]) -> Columns:
    """Draw audio for each text, which is its transcript."""
    return {"audio": draw_sounds(texts)["audio"], "transcript": texts}


def ask_texts(texts: list[str]) -> Columns:
    """Ask for the first words of a text, some of which is longer than a span."""
    contexts = [" ".join([text, *texts[at % 3 : at % 3 + at % 4]]) for at, text in enumerate(texts)]
    answers = [{"text": [" ".join(text.split()[:2])], "answer_start": [0]} for text in texts]
    return {"question": [text.split()[-1] for text in texts], "context": contexts, "answers": answers}


def save_many_labels(folder: Path) -> None:
    names = dict(enumerate(("mood", "thing", "short")))
    save_bert(folder, "BertForSequenceClassification", id2label=names, problem_type="multi_label_classification")


def label_texts(texts: list[str]) -> Columns:
    """Label texts by what is in them, some with nothing."""
    found = [
        [name for name, is_so in zip(("mood", "thing", "short"), each, strict=True) if is_so]
        for each in (("good" in text, "film" in text, len(text) < 30) for text in texts)
    ]
    return {"text": texts, "labels": found}


def shorten_texts(texts: list[str]) -> Columns:
    """Want the first words of each text."""
    return {"text": texts, "target": [" ".join(text.split()[:3]) for text in texts]}


TASKS: Mapping[str, tuple[Callable[[Path], None], Callable[[list[str]], Columns]]] = {
    "audio-classification": (save_sounds, draw_sounds),
    "automatic-speech-recognition": (save_speech, speak_texts),
    "feature-extraction": (save_encoder, lambda texts: {"text": texts}),
    "multi-label-classification": (save_many_labels, label_texts),
    "text-regression": (lambda folder: save_bert(folder, "BertForSequenceClassification", num_labels=1), pair_texts),
    "text-ranking": (lambda folder: save_bert(folder, "BertForSequenceClassification", num_labels=1), rank_texts),
    "text-pair-classification": (save_comparer, compare_texts),
    "question-answering": (lambda folder: save_bert(folder, "BertForQuestionAnswering"), ask_texts),
    "sentence-similarity": (save_encoder, pair_texts),
    "fill-mask": (lambda folder: save_bert(folder, "BertForMaskedLM"), lambda texts: {"text": texts}),
    "image-classification": (save_shapes, draw_shapes),
    "speech-to-text": (save_transcriber, speak_texts),
    "text2text-generation": (save_writer, shorten_texts),
    "object-detection": (save_boxes, draw_objects),
    "semantic-segmentation": (save_maps, draw_masks),
    "token-classification": (save_tagger, tag_words),
}


def write_task_recipe(folder: Path, task: str) -> TinyRecipe:
    """Write checkpoint, disjoint splits, recipe and fleet of a task under `folder`; the same bytes each time."""
    import datasets

    datasets.disable_progress_bars()
    save, make_columns = TASKS[task]
    save(folder / "checkpoint")
    (folder / "rows").mkdir()
    texts = draw_texts(7, 2 * ROWS)
    optional = [name for name in model_task(task).optional_columns if name in make_columns(texts[:1])]
    for split, part in {"evaluation": texts[:ROWS], "calibration": texts[ROWS:]}.items():
        datasets.Dataset.from_dict(make_columns(part)).to_parquet(str(folder / "rows" / f"{split}.parquet"))
    others = {"samples": {"min": 1600, "opt": 4000, "max": 6400}, "new_tokens": {"min": 1, "opt": 4, "max": 8}}
    profiles = [{axis: (others | profile)[axis] for axis in model_task(task).axes} for profile in PROFILES]
    data = {"path": "rows", "max_length": 16, "calibration": {"samples": 16}} | {name: name for name in optional}
    recipe = {**RECIPE, "task": task, "profiles": profiles, "data": data}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "fleet.yaml").write_text(yaml.safe_dump(FLEET), encoding="utf-8")
    return TinyRecipe(folder)
