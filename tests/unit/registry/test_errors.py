"""An error's first line is never empty and never colored, whatever the message."""

import pytest

from registry.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("lost\nand more", "lost"),
        ("\n\nlost", "lost"),
        ("not loaded:\n\tsize mismatch\nand more", "not loaded: size mismatch"),
        ("not loaded:", "not loaded:"),
        ("\x1b[96mlost\x1b[0m at sea", "lost at sea"),
        ("", "ValueError"),
        (" \n", "ValueError"),
        ("\x1b[0m", "ValueError"),
    ],
)
def test_first_line_is_never_empty_and_has_no_colors(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
