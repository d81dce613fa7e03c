"""A name that passes is safe as a folder, an MLflow name and an alias."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import BadInput, BadName
from registry.names import check_name, check_version

ALPHABET = st.sampled_from("ab09._-/\\@ \n%A'é")


@given(st.text(ALPHABET, max_size=70))
def test_name_that_passes_escapes_nothing(name: str) -> None:
    try:
        assert check_name(name, what="model") == name
    except BadName as error:
        assert "\n" not in str(error)  # noqa: PT017 -- both outcomes are allowed, and both are checked
        return
    assert PurePosixPath("root", name).parent == PurePosixPath("root")
    assert name.isascii()
    assert 1 <= len(name) <= 63
    assert not set(name) & set("/\\@ \n%A'")
    assert ".." not in name


@given(st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?", fullmatch=True))
def test_plain_names_pass(name: str) -> None:
    assert check_name(name, what="model") == name


@pytest.mark.parametrize("name", ["", "a" * 64, "-a", "a-", ".", "..", "a..b", "a/b", "a\n", "%2e%2e", "A"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadName, match="not a valid name"):
        check_name(name, what="model")


@pytest.mark.parametrize("version", [0, -7, 2**31, 2**63, 10**20])
def test_a_version_that_no_database_holds_is_refused(version: int) -> None:
    with pytest.raises(BadInput, match=f"version {version} cannot exist"):
        check_version(version)


def test_versions_pass() -> None:
    assert [check_version(version) for version in (1, 2**31 - 1)] == [1, 2**31 - 1]
