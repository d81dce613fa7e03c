"""Where the recipes' folder keeps what every command reads: apart from its parser, since `enginery --help` needs it."""

from pathlib import Path

FLEET = Path("recipes/fleet.yaml")
