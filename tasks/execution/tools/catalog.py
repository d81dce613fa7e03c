"""The tools that there are: one folder of tools/ each, with requirements.txt and the scripts that run with them."""

import difflib
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from registry.digest import digest_of
from registry.errors import BadInput

# Of Enginery itself, in a checkout and in the wheel.
TOOLS = Path(__file__).parents[3] / "tools"
REQUIREMENTS = "requirements.txt"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Tool:
    """A tool: its folder of tools/, what it is for, and what it installs.

    `packages` are (name, version), its own package first; with none nothing is installed.
    """

    folder: Path
    purpose: str
    packages: tuple[tuple[str, str], ...]
    key: str

    @property
    def name(self) -> str:
        """The name that commands have for it."""
        return self.folder.name

    @property
    def version(self) -> str:
        """The version of its own package."""
        return self.packages[0][1] if self.packages else ""

    @property
    def requirements(self) -> Path:
        """The file of what is installed: every package pinned, with the hashes of its files."""
        return self.folder / REQUIREMENTS

    def place(self, home: Path) -> Path:
        """Return where its environment lies once it is installed: other requirements or another Python, other place."""
        return home / "tools" / self.name / self.key


def list_tools(folder: Path = TOOLS) -> tuple[Tool, ...]:
    """List the tools in a folder, by name."""
    return tuple(read_tool(file.parent) for file in sorted(folder.glob(f"*/{REQUIREMENTS}")))


def find_tool(name: str) -> Tool:
    """Return the tool of that name.

    Raises:
        BadInput: there is none; the message names the nearest, or all.
    """
    tools = {tool.name: tool for tool in list_tools()}
    if name not in tools:
        near = difflib.get_close_matches(name, tools, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(tools) or 'none'}"
        raise BadInput(f"there is no tool {name[:80]!r}: {hint}")
    return tools[name]


def read_tool(folder: Path) -> Tool:
    """Read a tool's requirements, whose first line says what it is for."""
    text = (folder / REQUIREMENTS).read_text(encoding="utf-8")
    # Wheels are for a Python and a machine.
    key = digest_of((text, sys.implementation.cache_tag, sys.platform, platform.machine()))[:16]
    purpose = text.partition("\n")[0].removeprefix("#").strip()
    return Tool(folder, purpose, tuple(_REQUIREMENT.findall(text)), key)
