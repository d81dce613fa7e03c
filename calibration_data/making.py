"""The command line of the modules that make rows, and a small checkpoint trained on them."""

import argparse
from collections.abc import Callable
from pathlib import Path


def make_into(default: Path, description: str | None, make: Callable[[Path, Path], str]) -> None:
    """Fill rows/ and checkpoint/ of the folder that the command line names, and print what `make` says of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--into", type=Path, default=default)
    into: Path = parser.parse_args().into
    rows, checkpoint = into / "rows", into / "checkpoint"
    for folder in (rows, checkpoint):
        folder.mkdir(parents=True, exist_ok=True)
    print(f"{into}: {make(rows, checkpoint)}")
