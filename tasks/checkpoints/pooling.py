"""How a sentence encoder's token states become one vector: read from the files of sentence-transformers.

https://sbert.net/docs/sentence_transformer/usage/custom_models.html describes modules.json and 1_Pooling/config.json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from registry.errors import BadInput
from tasks.checkpoints.config import read_json, read_json_object

MODULES_FILE, POOLING_FILE = "modules.json", "1_Pooling/config.json"
Mode = Literal["cls", "mean", "max", "mean_sqrt_len"]
_MODES: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}


@dataclass(frozen=True)
class Pooling:
    """How the states of a text's tokens become its vector, and whether that has length 1."""

    mode: Mode = "mean"
    normalize: bool = False


def read_pooling(folder: Path) -> Pooling:
    """Read a checkpoint's pooling; the mean of the tokens where it has none, as sentence-transformers does.

    Raises:
        BadInput: it has modules other than Transformer, Pooling and Normalize, or a mode that is not supported.
    """
    if not (folder / MODULES_FILE).is_file():
        return Pooling()
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in _read_modules(folder / MODULES_FILE)]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise BadInput(
            f"{folder / MODULES_FILE} has the modules {', '.join(kinds)[:200]}: only Transformer, Pooling and "
            "Normalize can be put into the graph; use another model, or give its network as source.module"
        )
    if not (folder / POOLING_FILE).is_file():
        raise BadInput(f"{folder} has no {POOLING_FILE}, which its {MODULES_FILE} names: download it again")
    settings = read_json_object(folder / POOLING_FILE)
    chosen = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise BadInput(
            f"{folder / POOLING_FILE} asks for {', '.join(chosen) or 'no pooling'}: one of {', '.join(_MODES)} can be "
            "put into the graph"
        )
    return Pooling(_MODES[chosen[0]], normalize=kinds[-1] == "Normalize")


def _read_modules(file: Path) -> list[dict[str, object]]:
    modules = read_json(file)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BadInput(f"{file} is no list of modules: download it again")
    return modules
