"""An error's first line is never empty and never colored, whatever the message."""

import errno
import os

import pytest

from registry.errors import BadInput, EngineryError, explain_place, first_line, printable, shown_address


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


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://h:5000/path", "http://h:5000/path"),
        ("https://ana:s3cret@h/path", "https://h/path"),
        ("htp://ana:s3/c?r#e@t@h:5000", "htp://h:5000"),
        ("ana:s3cret@h:5000", "h:5000"),
        ("https://h/path?token=s3cret", "https://h/path"),
        ("https://h/?key=s3cret#s3cret", "https://h/"),
        ("https://h#s3cret", "https://h"),
        ("postgresql+psycopg://ana:s3cret@h/db?password=s3cret", "postgresql+psycopg://h/db"),
        ("sqlite:////home/ana@work/mlflow.db", "sqlite:////home/ana@work/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_what_can_be_secret(address: str, shown: str) -> None:
    assert shown_address(address) == shown
    # A sentence's own addresses are found by their scheme.
    sentence = str(EngineryError(f"nothing answers at {address if '://' in address else shown}, start it"))
    assert "s3cret" not in sentence
    assert "s3/c" not in sentence


def test_no_text_controls_a_terminal() -> None:
    hostile = "a\x1b]0;title\x07b\x1b[2Jc\x9b31md\re\x00\n\tf"
    assert printable(hostile) == "a]0;titlebc31mde\n\tf"
    assert "\x1b" not in str(EngineryError(hostile))


def of_system(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            of_system(errno.EROFS, "/srv/models"),
            ("/srv/models: Read-only file system", "let this user", "another path"),
        ),
        (of_system(errno.EACCES, "/srv/models"), ("/srv/models: Permission denied", "let this user")),
        (of_system(errno.ENOTDIR, "/srv/file/x"), ("/srv/file/x: Not a directory: name another path",)),
        (
            of_system(errno.ENAMETOOLONG, "/" + "x" * 5000),
            (
                "/xxx",
                "x…: File name too long: name another path",
            ),
        ),
        (of_system(errno.ENOENT), ("No such file or directory",)),
    ],
)
def test_a_path_that_cannot_be_used_is_bad_input(error: OSError, words: tuple[str, ...]) -> None:
    sentence = explain_place(error)
    assert isinstance(sentence, BadInput)
    assert len(str(sentence)) < 250
    for word in words:
        assert word in str(sentence)


@pytest.mark.parametrize("path", [None, "/srv/models"])
def test_a_full_disk_is_the_machines_error_and_not_the_users(path: str | None) -> None:
    sentence = explain_place(of_system(errno.ENOSPC, path))
    assert sentence is not None
    assert sentence.exit_code == 1
    assert str(sentence).startswith(f"{path}: No space left" if path else "No space left")
    assert "free space" in str(sentence)


@pytest.mark.parametrize("error", [of_system(errno.ECONNREFUSED), of_system(errno.EPIPE), OSError("no number")])
def test_any_other_error_of_the_system_keeps_its_traceback(error: OSError) -> None:
    assert explain_place(error) is None
