"""config.json and tokenizer_config.json of a checkpoint, checked before transformers sees them.

A config decides what transformers imports, downloads and allocates, so a stranger's is hostile until checked: no key
may name code, another repository or another file (`REFUSED`), and what sizes a network must be a sane number.
Line references are to transformers 4.57.6.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registry.errors import BadInput, first_line
from tasks.checkpoints.architectures import check_model_type, refuse_timm

# Room for the names of many labels, or of many added tokens.
MOST_BYTES = 32 * 2**20
DEEPEST = 16
CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
)
# What transformers would do at each key, wherever in the file it stands, and what to do instead.
_NO_CODE, _NO_OTHER = "use a model without it", "remove the key, or use another model"
_UNQUANTIZED = "use the unquantized checkpoint, which Enginery quantizes itself"
REFUSED: Mapping[str, tuple[str, str]] = {
    # dynamic_module_utils.get_class_from_dynamic_module imports the Python file that it names, also of another
    # repository ("owner/repo--file.Class").
    "auto_map": ("runs the author's Python code", _NO_CODE),
    # pipelines/__init__.py: the same, for pipelines.
    "custom_pipelines": ("runs the author's Python code", _NO_CODE),
    # configuration_utils.get_config_dict reads the file that it names in place of the one that was checked here.
    "configuration_files": ("puts another config in the place of this one", _NO_OTHER),
    # configuration_utils.PretrainedConfig.__setattr__: gives any key the name of another, also that of the attention.
    "attribute_map": ("gives other keys the names that are checked here", _NO_OTHER),
    # configuration_utils.PretrainedConfig: the parts that a choice of the attention reaches.
    "sub_configs": ("changes which parts are set by us", _NO_OTHER),
    # tokenization_utils_base.from_pretrained: the same, for tokenizer.json.
    "fast_tokenizer_files": ("puts another tokenizer in the place of tokenizer.json", _NO_OTHER),
    # modeling_utils.from_pretrained joins it to the folder's path and loads that file, "../other.safetensors" too.
    "transformers_weights": ("names other weights to load", _NO_OTHER),
    # quantizers/auto.get_hf_quantizer imports the package of its quant_method, which replaces layers by its own
    # kernels; methods that it does not know are ignored, and the scales of the weights with them.
    "quantization_config": ("says that the weights are quantized by another tool", _UNQUANTIZED),
    "compression_config": ("says that the weights are quantized by another tool", _UNQUANTIZED),
    # utils/backbone_utils.load_backbone: AutoBackbone.from_pretrained(backbone), or timm's create_model.
    "backbone": ("loads a network from another repository", _NO_OTHER),
    "use_timm_backbone": ("loads a network from another repository", _NO_OTHER),
    "use_pretrained_backbone": ("loads a network from another repository", _NO_OTHER),
    # modeling_utils.from_pretrained, with peft installed: loads that repository in place of this one.
    "base_model_name_or_path": ("loads a network from another repository", _NO_OTHER),
}
# configuration_utils sets what a file has of these as the config's own attributes; modeling_utils line 2666 then takes
# "owner/repo" for a kernel and loads it from the hub, native code and all. Export never takes it from the file
# (tasks/graphs/export.py); names of transformers' own are harmless, and many checkpoints have one.
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
OWN_ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# Not refused: _name_or_path is text that every save_pretrained writes. One model (xcodec, no text model) follows it,
# and finds the exporter without a network.


def _whole(least: int, most: int) -> Any:
    return Field(ge=least, le=most, strict=True, description=f"a whole number from {least} to {most}")


Width = Annotated[int, _whole(1, 2**18)]
Count = Annotated[int, _whole(1, 2**12)]
Rows = Annotated[int, _whole(1, 2**24)]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Names = Annotated[list[str], Field(description="a list of class names")]
_SIDE = Annotated[int, Field(ge=1, le=2**18, strict=True)]
Widths = Annotated[_SIDE | list[_SIDE], Field(description="a whole number from 1 to 262144, or a list of them")]
_COUNT = Annotated[int, Field(ge=1, le=2**12, strict=True)]
Counts = Annotated[_COUNT | list[_COUNT], Field(description="a whole number from 1 to 4096, or a list of them")]
Dtype = Annotated[str, Field(pattern=r"^(b?float16|float32|float64)$", description="a floating-point type")]


class NetworkConfig(BaseModel):
    """What sizes a network: the keys of text and image models, by every name that they have."""

    model_config = ConfigDict(strict=True, extra="ignore")

    hidden_size: Width | None = None
    d_model: Width | None = None
    dim: Width | None = None
    n_embd: Width | None = None
    embedding_size: Width | None = None
    intermediate_size: Width | None = None
    hidden_dim: Width | None = None
    d_ff: Width | None = None
    head_dim: Width | None = None
    num_hidden_layers: Count | None = None
    n_layers: Count | None = None
    n_layer: Count | None = None
    num_layers: Count | None = None
    num_attention_heads: Counts | None = None
    num_key_value_heads: Count | None = None
    n_heads: Count | None = None
    n_head: Count | None = None
    vocab_size: Rows | None = None
    max_position_embeddings: Rows | None = None
    n_positions: Rows | None = None
    type_vocab_size: Annotated[int, _whole(0, 2**24)] | None = None
    pad_token_id: Annotated[int, _whole(-1, 2**24)] | None = None
    num_labels: Annotated[int, _whole(1, 2**20)] | None = None
    hidden_act: Annotated[str, Field(description="the name of an activation")] | None = None
    hidden_dropout_prob: Share | None = None
    attention_probs_dropout_prob: Share | None = None
    layer_norm_eps: Share | None = None
    dtype: Dtype | None = None
    torch_dtype: Dtype | None = None
    architectures: Names | None = None
    label2id: Annotated[dict[str, int], Field(description="a mapping of class names to numbers")] | None = None
    pruned_heads: Annotated[dict[str, list[int]], Field(description="a mapping of layers to heads")] | None = None
    chunk_size_feed_forward: Annotated[int, _whole(0, 2**24)] | None = None
    num_channels: Count | None = None
    patch_size: Widths | None = None
    image_size: Widths | None = None
    hidden_sizes: Widths | None = None
    depths: Widths | None = None


def read_config(folder: Path, *, where: str | None = None) -> dict[str, Any]:
    """Read config.json, after it and the small configs beside it were checked; `where` names the folder in errors.

    Raises:
        BadInput: it is missing, no JSON object, too large or too deep; a key names code or another repository; a size
            is out of bounds; or transformers has no such model_type.
    """
    place = where or str(folder)
    for name in CONFIGS[1:]:
        if (folder / name).is_file():
            _check_keys(read_json_object(folder / name, place), f"{place}/{name}")
    config, name = read_json_object(folder / CONFIGS[0], place), f"{place}/{CONFIGS[0]}"
    _check_keys(config, name)
    for steps, mapping in _walk(config, name):
        _check_sizes(mapping, steps, name)
    read_classes(config, name)
    refuse_timm(config, name)
    check_model_type(config.get("model_type"), name)
    return config


def read_classes(config: Mapping[str, Any], name: str = "config.json") -> tuple[str, ...]:
    """Return the class names in id order; empty where the checkpoint tells no classes apart.

    transformers leaves id2label out of config.json where it is its default, {0: LABEL_0, 1: LABEL_1}.

    Raises:
        BadInput: the ids are not 0..n-1, a name is no text, or num_labels says another count.
    """
    id2label, count = config.get("id2label") or {}, config.get("num_labels")
    if not id2label and any(
        str(kind).endswith(("Classification", "Segmentation")) for kind in config.get("architectures") or ()
    ):
        return tuple(f"LABEL_{number}" for number in range(2 if count is None else count))
    try:
        names = {int(key): str(value) for key, value in id2label.items()}
    except (AttributeError, ValueError):
        names = {-1: ""}
    is_nested = isinstance(id2label, dict) and any(isinstance(value, dict | list) for value in id2label.values())
    if is_nested or sorted(names) != list(range(len(names))):
        raise BadInput(f"{name}: id2label must map 0..n-1 to names, but is {id2label!r:.80}: correct it")
    if names and count is not None and count != len(names):
        raise BadInput(f"{name}: id2label has {len(names)} names, num_labels says {count}: correct one of them")
    return tuple(names[index] for index in range(len(names)))


def read_json_object(file: Path, place: str | None = None) -> dict[str, Any]:
    """Read a JSON object of at most 32 MiB, without NaN and infinities.

    Raises:
        BadInput: it is something else; `place` names its folder.
    """
    content = read_json(file, place)
    if not isinstance(content, dict):
        raise BadInput(f"{place or file.parent}/{file.name} is not a JSON object: repair or download it again")
    return content


def read_json(file: Path, place: str | None = None) -> Any:
    """Read JSON of at most 32 MiB, without NaN and infinities.

    Raises:
        BadInput: it is something else; `place` names its folder.
    """
    where = f"{place or file.parent}/{file.name}"
    try:
        if (size := file.stat().st_size) > MOST_BYTES:
            raise BadInput(f"{where} has {size} bytes, more than {MOST_BYTES}: repair or download it again")
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise BadInput(f"{where} cannot be read as JSON ({reason}): repair or download it again") from None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"it has {constant}, which is no number")


def _check_keys(content: Mapping[str, Any], name: str) -> None:
    """Refuse keys by which transformers would run code, follow a repository or read another file."""
    for steps, mapping in _walk(content, name):
        for key, value in mapping.items():
            # Many checkpoints say that they have none: "backbone": null, "use_timm_backbone": false.
            if key in REFUSED and value is not None and value is not False:
                does, instead = REFUSED[key]
                raise BadInput(f"{name}: {_join(steps, key)} {does}: {instead}")
            if key in ATTENTION and not any(value == own for own in OWN_ATTENTION):
                raise BadInput(
                    f"{name}: {_join(steps, key)} is {_show(value)}, which loads native code from a repository: remove "
                    "the key; export chooses the attention itself"
                )


def _walk(value: Any, name: str, steps: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield each mapping in a file's content with the keys that lead to it.

    Raises:
        BadInput: it is nested too deeply, or a number has no finite value or no room in 64 bits.
    """
    if len(steps) > DEEPEST:
        raise BadInput(f"{name}: {_join(steps[:3])} is nested more than {DEEPEST} deep: repair or download it again")
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"{name}: {_join(steps)} is too large for a number: correct it")
    # The tokenizers' "no limit" (1e30 as a whole number) is beside the point here, and in nearly every checkpoint.
    if isinstance(value, int) and abs(value) > sys.maxsize and steps[-1] != "model_max_length":
        raise BadInput(f"{name}: {_join(steps)} is {_show(value)}, too large for a size: correct it")
    if isinstance(value, dict):
        yield steps, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from _walk(entry, name, (*steps, str(key)))


def _check_sizes(mapping: Mapping[str, Any], steps: tuple[str, ...], name: str) -> None:
    try:
        NetworkConfig.model_validate(mapping)
    except ValidationError as error:
        key = str(error.errors(include_url=False)[0]["loc"][0])
        raise BadInput(
            f"{name}: {_join(steps, key)} must be {_describe(key)}, but is {_show(mapping[key])}: correct it, or use "
            "another model"
        ) from None


def _describe(key: str) -> str:
    """Say what a key of a network's config may be."""
    schema = NetworkConfig.model_json_schema()["properties"][key]
    return str(next(choice["description"] for choice in schema["anyOf"] if "description" in choice))


def _join(steps: tuple[str, ...], key: str = "") -> str:
    return ".".join(repr(step)[1:-1][:60] for step in (*steps, *([key] if key else ())))


def _show(value: object) -> str:
    return f"{value!r:.60}"
