"""Where the fleet file lies: apart from its parser, since `enginery --help` needs it."""

from pathlib import Path

# Of the folder in which `enginery` runs: a team's own.
FLEET = Path("recipes/fleet.yaml")
# Of Enginery itself, in a checkout and in the wheel: for one who has no fleet file yet.
BUILT_IN_FLEET = Path(__file__).parents[2] / FLEET
