"""Answer sentences with a fetched bundle: what `enginery run` does, and a pattern for a team's own server."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from registry.bundle.manifest import verify_bundle
from registry.errors import BadInput
from tasks.backends import open_engine
from tasks.model_tasks.text_inputs import text_encoder


@dataclass(frozen=True)
class Answer:
    """The class of a text; `score` is its softmax probability."""

    text: str
    label: str
    score: float


def answer(bundle: Path, texts: Sequence[str]) -> list[Answer]:
    """Verify the bundle, load its engine, classify the texts in one batch.

    Raises:
        TornBundle, DigestMismatch: the bundle is not what was published; nothing was loaded.
        BadInput: more texts than the engine's largest batch, or an empty text.
        Incompatible: an engine for another GPU or library version than this machine has.
    """
    manifest = verify_bundle(bundle)
    build = replace(manifest.build, directory=bundle)
    largest = max((profile.batch.max for profile in build.profiles), default=len(texts))
    if len(texts) > largest or not all(text.strip() for text in texts):
        raise BadInput(f"give 1 to {largest} texts, none of them empty: the engine was built for such batches")
    longest = max((profile.sequence.max for profile in build.profiles), default=512)
    encoder = text_encoder(bundle, [tensor.name for tensor in build.inputs], max_length=longest)
    logits = open_engine(build).run(encoder.encode(texts))[0].astype(np.float64)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares = shifted / shifted.sum(axis=-1, keepdims=True)
    names = manifest.source.labels
    return [Answer(text, names[int(row.argmax())], float(row.max())) for text, row in zip(texts, shares, strict=True)]
