"""What Optimum cannot export is known by config.json alone, before anything is installed."""

from typing import Any

import pytest

from registry.errors import BadInput
from tasks.checkpoints.architectures import (
    check_model_type,
    explain_newer,
    list_exported_types,
    list_model_types,
    list_newer_types,
)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "eurobert"}, "transformers 4 has no model type eurobert"),
        ({"model_type": "ernie"}, "Optimum has no export of ernie"),
        (
            {"model_type": "modernbert", "rope_parameters": {"full_attention": {"rope_theta": 20.0}}},
            "it was saved by transformers 5 (rope_parameters)",
        ),
        (
            {"model_type": "qwen3_vl", "text_config": {"rope_parameters": {"rope_theta": 20.0}}},
            "Optimum has no export of qwen3_vl",
        ),
        (
            {"model_type": "gemma3", "text_config": {"rope_parameters": {"rope_theta": 20.0}}},
            "it was saved by transformers 5 (rope_parameters)",
        ),
        ({"model_type": "bert", "transformers_version": "5.24.0", "dtype": "float32"}, ""),
        ({"model_type": "modernbert", "rope_parameters": None, "global_rope_theta": 20.0}, ""),
        # No network for it in either version: Optimum says so.
        ({"model_type": "nezha"}, ""),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_a_checkpoint_goes_to_transformers_5_only_where_optimum_cannot_export_it(
    config: dict[str, Any], reason: str
) -> None:
    assert explain_newer(config) == reason


def test_a_model_type_of_either_transformers_is_accepted() -> None:
    check_model_type("bert", "config.json")
    check_model_type("eurobert", "config.json")
    with pytest.raises(BadInput, match=r"no model type 'eurobrt': did you mean eurobert\?"):
        check_model_type("eurobrt", "config.json")


def test_the_exported_types_are_those_of_the_installed_optimum() -> None:
    from optimum.exporters.onnx import model_configs  # noqa: F401  # fills the table
    from optimum.exporters.tasks import TasksManager

    table = TasksManager._SUPPORTED_MODEL_TYPE
    registered = {name for name, exporters in table.items() if "onnx" in exporters}
    # Optimum also names parts of networks of other libraries, which are no model types of transformers.
    assert list_exported_types() & list_model_types() == registered & list_model_types()
    assert registered <= list_exported_types()


def test_transformers_5_is_listed_with_what_this_one_lacks() -> None:
    assert {"eurobert", "modernvbert"} <= list_newer_types() - list_model_types()
