"""A classification head on a frozen BERT encoder, saved as a plain BertForSequenceClassification.

The checkpoint's own pooler is the starting point; it and the classifier are fitted on features that the
frozen encoder computes once, so a few thousand rows take seconds on a CPU.
"""

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from calibration_data.reader import Rows
from registry.digest import digest_of
from registry.errors import BadInput
from registry.records import SourceFiles
from tasks.checkpoints.pooling import MODULES_FILE, POOLING_FILE
from tasks.checkpoints.source import collect, staging
from tasks.execution.progress import OnProgress, ignore_progress
from tasks.model_tasks.inputs.texts import TEXT_INPUTS, open_text_encoder

TASK = "text-classification"
BATCH_ROWS = 64
# What says how an encoder ends, which the head does from now on.
REPLACED = ("config.json", MODULES_FILE, POOLING_FILE)


@dataclass(frozen=True)
class HeadSettings:
    """How pooler and classifier are fitted; `learning_rate` is the peak of a one-cycle schedule."""

    epochs: int = 30
    batch_rows: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    dropout: float = 0.4
    label_smoothing: float = 0.05


DEFAULTS = HeadSettings()


def fit_head(
    encoder: SourceFiles,
    rows: Rows,
    *,
    seed: int,
    max_length: int,
    into: Path,
    on_progress: OnProgress = ignore_progress,
    settings: HeadSettings = DEFAULTS,
) -> SourceFiles:
    """Make a checkpoint with `encoder`'s weights and a head fitted on `rows`; same rows and seed, same weights.

    Inputs are texts, targets indices into the classes; texts are cut at `max_length` tokens; `on_progress` gets the
    share of rows encoded. The revision is the tree digest; the origin names the encoder and the rows' digest.

    Raises:
        BadInput: counts differ, a label is out of range or has no row, or the encoder is no BERT.
    """
    classes = rows.classes or ()
    check_rows(rows.inputs, rows.targets, classes)
    bert = _make_classifier(encoder, classes, seed=seed)
    features = cls_features(bert, encoder.directory, rows.inputs, max_length=max_length, on_progress=on_progress)
    fit_pooler_and_classifier(bert, features, torch.tensor(list(rows.targets)), seed=seed, settings=settings)
    rows_digest = digest_of((list(rows.inputs), [int(label) for label in rows.targets], list(classes)))
    with staging(into) as folder:
        for file in encoder.files:
            if file.path not in REPLACED and not file.path.endswith((".safetensors", ".safetensors.index.json")):
                shutil.copyfile(encoder.directory / file.path, folder / file.path)
        bert.save_pretrained(folder)
        origin = f"{encoder.source.origin} + head fitted on {rows_digest}"
        head = collect(folder, name=encoder.source.name, task=TASK, origin=origin, revision=None)
        folder.replace(into)
    return SourceFiles(head.source, head.digest, head.files, into)


def check_rows(texts: Sequence[str], labels: Sequence[int], label_names: Sequence[str]) -> None:
    """Refuse rows that a classifier could not be fitted on.

    Raises:
        BadInput: counts differ, a label is out of range, or a label name has no row.
    """
    if len(texts) != len(labels):
        raise BadInput(f"{len(texts)} texts but {len(labels)} labels: give one label a text")
    if len(label_names) < 2 or len(set(label_names)) != len(label_names):
        raise BadInput(f"label names must be two or more, all different; they are {list(label_names)!r:.100}")
    if strange := sorted(set(labels) - set(range(len(label_names)))):
        raise BadInput(f"label {strange[0]} has no name: there are {len(label_names)} names, counted from 0")
    if absent := [name for index, name in enumerate(label_names) if index not in set(labels)]:
        raise BadInput(f"no text is labelled {', '.join(absent)}: give rows for it, or leave the label out")


def cls_features(
    bert: Any, checkpoint: Path, texts: Sequence[str], *, max_length: int, on_progress: OnProgress = ignore_progress
) -> torch.Tensor:
    """Return the last hidden state of [CLS], float32 [len(texts), hidden size], in the order of `texts`."""
    tokenizer = open_text_encoder(checkpoint, TEXT_INPUTS, {"sequence": max_length})
    features = torch.empty(len(texts), bert.config.hidden_size)
    done = 0
    with torch.inference_mode():
        # Texts of similar length together: padding is most of the work otherwise.
        for positions, rows in tokenizer.batches(texts, BATCH_ROWS):
            feed = {name: torch.from_numpy(ids) for name, ids in tokenizer.encode(rows).items()}
            features[positions] = bert.bert(**feed).last_hidden_state[:, 0]
            done += len(rows)
            on_progress("encode rows", done / len(texts))
    return features.clone()  # autograd refuses tensors that inference mode made


def fit_pooler_and_classifier(
    bert: Any, features: torch.Tensor, labels: torch.Tensor, *, seed: int, settings: HeadSettings = DEFAULTS
) -> None:
    """Fit the head of `bert` in place by AdamW with a one-cycle rate; features [rows, hidden], labels [rows]."""
    head = [*bert.bert.pooler.parameters(), *bert.classifier.parameters()]
    optimizer = torch.optim.AdamW(head, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(labels) // settings.batch_rows)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    # The matrices are small: on a busy machine, threads that wait for each other cost more than they give.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Dropout draws from the process's generator: lend it a seed, and give it back as it was.
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(seed)
        for _ in range(settings.epochs):
            for rows in torch.split(torch.randperm(len(labels)), settings.batch_rows):
                pooled = torch.tanh(bert.bert.pooler.dense(functional.dropout(features[rows], settings.dropout)))
                logits = bert.classifier(functional.dropout(pooled, settings.dropout))
                loss = functional.cross_entropy(logits, labels[rows], label_smoothing=settings.label_smoothing)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()


def _make_classifier(encoder: SourceFiles, label_names: Sequence[str], *, seed: int) -> Any:
    """Make a BertForSequenceClassification in eval mode: the encoder's weights, its pooler, a new classifier."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig.from_pretrained(encoder.directory, local_files_only=True)
    config._attn_implementation = None  # noqa: SLF001  # as in tasks/graphs/export.py: never what the file asks for
    if config.model_type != "bert":
        raise BadInput(f"{encoder.source.name} is a {config.model_type}: a head can be fitted on a BERT encoder only")
    config.id2label = dict(enumerate(label_names))
    config.label2id = {label: index for index, label in enumerate(label_names)}
    config.problem_type = "single_label_classification"
    body, loading = BertModel.from_pretrained(encoder.directory, use_safetensors=True, output_loading_info=True)
    if missing := loading["missing_keys"]:
        raise BadInput(f"{encoder.source.name} lacks {min(missing)}: a head needs an encoder with its pooler")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        bert = BertForSequenceClassification(config)
    bert.bert.load_state_dict(body.state_dict())
    return bert.float().eval()
