"""An error's first line is never empty, whatever the message."""

import pytest

from registry.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"), [("lost\nand more", "lost"), ("\n\nlost", "lost"), ("", "ValueError"), (" \n", "ValueError")]
)
def test_first_line_is_never_empty(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
