"""Checkpoints that transformers 5 saves: made in the tool's environment, for this one's cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import EngineryError
from tasks.checkpoints.architectures import NEWER_TOOL
from tasks.execution.tools.catalog import find_tool
from tasks.execution.tools.install import install_tool
from tests.support.tiny import SPECIAL, WORDS, write_tokenizer

_SAVE = """
import sys
import torch, transformers
from transformers import AutoConfig

folder, kind, head, entries = sys.argv[1], sys.argv[2], sys.argv[3], eval(sys.argv[4])
config = AutoConfig.for_model(kind, **entries)
torch.manual_seed(0)
model = getattr(transformers, head).from_config(config)
for name, weight in model.named_parameters():
    if weight.dim() > 1:
        torch.nn.init.normal_(weight, std=0.5)  # or a tiny net gives nearly the same to every text
model.save_pretrained(folder)
transformers.PreTrainedTokenizerFast(
    tokenizer_file=f"{folder}/tokenizer.json", pad_token="[PAD]", model_max_length=64
).save_pretrained(folder)
"""
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": len(SPECIAL + WORDS),
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}


def install_newer(home: Path) -> Path:
    """Install transformers 5 in a home, and return its packages; skip the test where there is no index."""
    try:
        return install_tool(find_tool(NEWER_TOOL), home)
    except EngineryError as error:
        if "needs a package index" in str(error):
            pytest.skip(str(error))
        raise


def save_newer(packages: Path, folder: Path, kind: str, head: str, **entries: object) -> Path:
    """Save a random network and its tokenizer as transformers 5 does."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    command = [sys.executable, "-P", "-c", _SAVE, str(folder), kind, head, repr(SIZES | entries)]
    subprocess.run(command, env={"PYTHONPATH": str(packages)}, check=True, capture_output=True)
    return folder
