"""A failure of Prefect's server ends a release with what the release itself had to say, else with one sentence."""

import httpx
import pytest

from flows.prefect_server.local import explain_failures
from registry.errors import EngineryError

REQUEST = httpx.Request("POST", "http://127.0.0.1:8000/api/flow_runs/1/set_state")


def fail_twice() -> None:
    try:
        raise EngineryError("stage export: no space")
    finally:
        refuse()


def refuse() -> None:
    raise httpx.HTTPStatusError("500 Internal Server Error", request=REQUEST, response=httpx.Response(500))


def test_what_a_flow_raised_is_told_where_prefect_could_not_store_it() -> None:
    with pytest.raises(EngineryError, match=r"^stage export: no space$"), explain_failures():
        fail_twice()


def test_a_server_that_fails_is_one_sentence() -> None:
    with (
        pytest.raises(EngineryError, match=r"\(it answered 500\): see what is wrong there"),
        explain_failures(),
    ):
        refuse()
    with pytest.raises(EngineryError, match=r"failed in mid-release \(gone\)"), explain_failures():
        raise httpx.ConnectError("gone")
