"""The headers of safetensors files, compared with config.json before a network is made of either.

A header names each tensor with its shape, and is read without the weights
(https://huggingface.co/docs/safetensors/index#format). What can be told of a network by the names alone is
compared here; export compares each tensor.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from registry.errors import BadInput, first_line
from tasks.checkpoints.config import read_classes

# By the names that architectures have for the same thing; of widths, the one that an embedding has stands first.
WIDTHS = ("word_embed_proj_dim", "input_embedding_size", "embedding_size", "hidden_size", "d_model", "dim", "n_embd")
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_EMBEDDING = re.compile(r"(?:.*\.)?(?:word_embeddings|word_embedding|embed_tokens|tok_embeddings|wte|shared)\.weight")
_LAYER = re.compile(r"(?:.*\.)?(?:layer|layers|h)\.(\d{1,9})\..*")
_HEAD = re.compile(r"(?:classifier(?:\.1)?|score|logits_proj|(?:classifier|classification_head)\.out_proj)\.weight")


def check_weights(files: Sequence[Path], config: Mapping[str, Any]) -> None:
    """Check that safetensors files parse, and that the shapes of their tensors are those that config.json says.

    Raises:
        BadInput: a file is cut short or none of safetensors, or its vocabulary, width, layers or classes are others.
    """
    shapes = {name: shape for file in files for name, shape in _read_shapes(file).items()}
    said = (*_list_sizes(shapes, config), *_list_layers(shapes, config), *_list_classes(shapes, config))
    for what, count, tensor, actual in said:
        if count != actual:
            raise BadInput(
                f"{files[0].parent / 'config.json'} gives {what} {count}, but the weights have {actual} ({tensor}): "
                "correct config.json, or use another model"
            )


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"{file} is not a safetensors file ({first_line(error)}): download it again, or use another model"
        ) from None
    if not shapes:
        raise BadInput(f"{file} holds no tensors: use another model")
    return shapes


# What config.json calls it and says of it; the tensor of the weights that shows it, and what that says.
_Said = tuple[str, object, str, int]


def _list_sizes(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[_Said]:
    for name, shape in shapes.items():
        if _EMBEDDING.fullmatch(name) and len(shape) == 2:
            for keys, actual in zip((("vocab_size",), WIDTHS), shape, strict=True):
                if (key := _find_key(config, keys)) is not None:
                    yield key, config[key], name, actual


def _list_layers(shapes: Mapping[str, object], config: Mapping[str, Any]) -> Iterator[_Said]:
    key = _find_key(config, LAYERS)
    numbers = {int(found[1]): name for name in shapes if (found := _LAYER.fullmatch(name))}
    # With a decoder beside the encoder, config.json has two numbers.
    if key is not None and numbers and not config.get("is_encoder_decoder"):
        last = max(numbers)
        yield key, config[key], numbers[last], last + 1


def _list_classes(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Iterator[_Said]:
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    if any(kind.endswith(("ForSequenceClassification", "ForImageClassification")) for kind in kinds):
        for name, shape in shapes.items():
            if _HEAD.fullmatch(name) and len(shape) == 2:
                yield "a number of classes (id2label) of", len(read_classes(config)), name, shape[0]


def _find_key(config: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if config.get(key) is not None), None)
