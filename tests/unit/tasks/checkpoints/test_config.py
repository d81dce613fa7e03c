"""A config that names code, another repository or file, or a size beyond reason, is refused in a sentence of ours."""

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.errors import BadInput, EngineryError
from tasks.checkpoints.architectures import list_model_types
from tasks.checkpoints.config import MOST_BYTES, NetworkConfig, read_classes, read_config
from tasks.checkpoints.source import list_checkpoint
from tasks.model_tasks.texts.text_classification import TEXT_CLASSIFICATION
from tests.support.tiny import tiny_bert

Edit = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def edit(checkpoint: Path, tmp_path: Path) -> Edit:
    """Copies the checkpoint with keys of one of its files set."""

    def write(file: str = "config.json", keys: Mapping[str, Any] | None = None, **changes: Any) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps({**before, **(keys or changes)}))
        return folder

    return write


CODE = {"AutoModel": "owner/repo--code.Net"}


@pytest.mark.parametrize(
    ("file", "changes", "key"),
    [
        ("config.json", {"auto_map": CODE}, "auto_map"),
        ("config.json", {"text_config": {"auto_map": CODE}}, "text_config.auto_map"),
        ("config.json", {"parts": [{}, {"auto_map": CODE}]}, "parts.1.auto_map"),
        ("config.json", {"custom_pipelines": {"x": {"impl": "code.Pipe"}}}, "custom_pipelines"),
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "configuration_files"),
        ("config.json", {"transformers_weights": "../other.safetensors"}, "transformers_weights"),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ("config.json", {"backbone": "owner/repo"}, "backbone"),
        ("config.json", {"vision_config": {"use_timm_backbone": True}}, "vision_config.use_timm_backbone"),
        ("config.json", {"use_pretrained_backbone": True}, "use_pretrained_backbone"),
        ("config.json", {"base_model_name_or_path": "owner/repo"}, "base_model_name_or_path"),
        ("config.json", {"attribute_map": {"kernel": "_attn_implementation"}, "kernel": "owner/repo"}, "attribute_map"),
        ("config.json", {"sub_configs": {"text_config": "x"}}, "sub_configs"),
        ("tokenizer_config.json", {"auto_map": ["code.Tokenizer", None]}, "auto_map"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.json"]}, "fast_tokenizer_files"),
        ("preprocessor_config.json", {"auto_map": CODE}, "auto_map"),
        ("processor_config.json", {"image": {"auto_map": CODE}}, "image.auto_map"),
    ],
)
def test_a_key_that_names_code_or_another_repository_is_refused(
    file: str, changes: dict[str, Any], key: str, edit: Edit
) -> None:
    with pytest.raises(BadInput, match=rf"edited/{file}: {key} .*: (use|remove) ") as caught:
        read_config(edit(file, **changes))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("kernel", ["owner/repo", "owner/repo@main:forward", "sdpa|owner/repo", {"text_config": "o/r"}])
def test_attention_from_a_repository_is_refused(key: str, kernel: object, edit: Edit) -> None:
    for changes, place in (({key: kernel}, key), ({"text_config": {key: kernel}}, f"text_config.{key}")):
        with pytest.raises(BadInput, match=f"{place} is .* loads native code from a repository: remove the key"):
            read_config(edit(**({key: None} | changes)))


def test_an_adapter_of_another_model_is_refused(edit: Edit) -> None:
    folder = edit("adapter_config.json", base_model_name_or_path="owner/repo")
    with pytest.raises(BadInput, match="adapter of another model: merge the two"):
        list_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"quantization_config": None, "backbone": None, "use_timm_backbone": False}),
        ("config.json", {"_attn_implementation": "sdpa", "_attn_implementation_autoset": True}),
        ("config.json", {"attn_implementation": None, "_attn_implementation_internal": "flash_attention_2"}),
        ("config.json", {"_name_or_path": "owner/repo", "anything": {"else": [1, 2.5, "x", None]}}),
        ("config.json", {"torch_dtype": "bfloat16", "dtype": None, "pad_token_id": None, "num_labels": 2}),
        ("tokenizer_config.json", {"model_max_length": 10**30, "tokenizer_file": None}),
    ],
)
def test_what_ordinary_checkpoints_say_is_accepted(file: str, changes: dict[str, Any], edit: Edit) -> None:
    assert read_config(edit(file, **changes))["model_type"] == "bert"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", -1),
        ("hidden_size", 0),
        ("hidden_size", "32"),
        ("hidden_size", 32.5),
        ("hidden_size", True),
        ("hidden_size", [32]),
        ("num_channels", 0),
        ("image_size", 2**30),
        ("image_size", [224, 0]),
        ("patch_size", 0.5),
        ("hidden_sizes", [64, 2**30]),
        ("depths", ["2"]),
        ("vocab_size", 10**12),
        ("num_hidden_layers", 10**9),
        ("num_attention_heads", 10**6),
        ("num_attention_heads", [1, 0]),
        ("max_position_embeddings", "many"),
        ("pad_token_id", [1]),
        ("type_vocab_size", -1),
        ("num_labels", 0),
        ("hidden_act", ["gelu"]),
        ("hidden_dropout_prob", 2.0),
        ("layer_norm_eps", "small"),
        ("dtype", "save"),
        ("torch_dtype", 7),
        ("architectures", "BertForSequenceClassification"),
        ("label2id", "x"),
        ("pruned_heads", {"0": "x"}),
    ],
)
def test_a_size_out_of_bounds_or_of_another_type_is_refused(key: str, value: object, edit: Edit) -> None:
    with pytest.raises(BadInput, match=rf"edited/config\.json: {key} must be .*, but is .*: correct it"):
        read_config(edit(**{key: value}))
    with pytest.raises(BadInput, match=rf"text_config\.{key} must be"):
        read_config(edit(**{key: None, "text_config": {key: value}}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"hidden_size": NaN}', "it has NaN"),
        ('{"hidden_size": -Infinity}', "it has -Infinity"),
        ('{"layer_norm_eps": 1e999}', "layer_norm_eps is too large"),
        ('{"other": 99999999999999999999}', "other is 99999999999999999999, too large for a size"),
        ('{"other": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ('{"x": ' + "[" * 20 + "]" * 20 + "}", "more than 16 deep"),
        ('{"x": ' + "[" * 9000 + "]" * 9000 + "}", "nested too deeply"),
        ("[1]", "is not a JSON object"),
        ('{"hidden_size": 3', "cannot be read as JSON"),
    ],
    ids=["nan", "infinity", "1e999", "int", "digits", "deep", "deeper", "list", "torn"],
)
def test_what_is_no_sane_json_is_refused(text: str, words: str, edit: Edit) -> None:
    folder = edit()
    (folder / "config.json").write_text(text)
    with pytest.raises(BadInput, match=words) as caught:
        read_config(folder)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_huge_file_is_refused_unread(file: str, edit: Edit) -> None:
    folder = edit()
    with (folder / file).open("wb") as sparse:
        sparse.truncate(MOST_BYTES + 1)
    with pytest.raises(BadInput, match=f"{file} has {MOST_BYTES + 1} bytes"):
        read_config(folder)


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("bertt", "no model type 'bertt': did you mean bert"),
        ("levitation" * 90, "use a checkpoint of another architecture"),
        (5, "has no model_type"),
        (None, "has no model_type"),
    ],
)
def test_an_architecture_that_transformers_lacks_is_refused(model_type: object, words: str, edit: Edit) -> None:
    with pytest.raises(BadInput, match=words):
        read_config(edit(model_type=model_type))


@pytest.mark.parametrize(
    "own",
    [
        {"model_type": None, "architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 224, 224]}},
        {"model_type": "timm_wrapper", "architecture": "resnet18"},
    ],
)
def test_a_checkpoint_of_timm_is_refused_with_what_to_do(own: dict[str, Any], edit: Edit) -> None:
    with pytest.raises(BadInput, match=r"timm checkpoint \(resnet18\), .* name the graph in source.onnx"):
        read_config(edit(**own))


def test_the_architectures_are_those_of_the_installed_transformers() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert list_model_types() == set(CONFIG_MAPPING_NAMES)


@pytest.mark.parametrize("id2label", [{"1": "a"}, {"x": "a"}, ["a"], 5, {"0": "a", "2": "b"}, {"0": {"a": 1}}])
def test_labels_must_be_numbered_from_zero(id2label: object, edit: Edit) -> None:
    with pytest.raises(BadInput, match="id2label"):
        read_classes({"id2label": id2label})
    with pytest.raises(BadInput, match=r"config\.json: id2label must map"):
        read_config(edit(id2label=id2label))


def test_labels_must_be_as_many_as_num_labels(edit: Edit) -> None:
    with pytest.raises(BadInput, match="id2label has 2 names, num_labels says 7"):
        read_config(edit(num_labels=7))
    unnamed = {"architectures": ["BertForSequenceClassification"], "num_labels": 3}
    assert read_classes(unnamed) == ("LABEL_0", "LABEL_1", "LABEL_2")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([*NetworkConfig.model_fields, "id2label", "problem_type", "model_type", "text_config"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS | st.text(max_size=12), VALUES, min_size=1, max_size=3))
def test_no_config_ends_the_reading_of_a_checkpoint_in_another_error_than_ours(
    changes: dict[str, Any], edit: Edit
) -> None:
    folder = edit("config.json", changes)
    with contextlib.suppress(EngineryError):
        list_checkpoint(folder)
        config = read_config(folder)
        TEXT_CLASSIFICATION.check_checkpoint(config)
        TEXT_CLASSIFICATION.check_shapes(config, {"sequence": 16})
