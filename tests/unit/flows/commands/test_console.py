"""What the commands print is text, whoever wrote it."""

from io import StringIO

import pytest
from rich.table import Table
from rich.text import Text

from flows.commands.console import err, out

HOSTILE = "production\x1b]0;owned\x07\x1b[2J\x9b1A"


@pytest.mark.parametrize("console", [out, err])
def test_codes_of_strangers_never_reach_the_terminal(console: object, monkeypatch: pytest.MonkeyPatch) -> None:
    written = StringIO()
    monkeypatch.setattr(console, "_file", written)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    for printed in (HOSTILE, Text(HOSTILE), table):
        console.print(printed, soft_wrap=True)  # type: ignore[attr-defined]
    assert written.getvalue().count("production") == 5
    assert not set(written.getvalue()) & {"\x1b", "\x07", "\x9b"}
