"""What a parent reads of the flow runs that it waits for, from a real server."""

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from flows.flow_runs import LONGEST_ANSWER, read_states

pytestmark = pytest.mark.slow


@flow
def waited_for() -> None:
    """Never run: only its flow runs are wanted."""


def test_none_of_more_children_than_one_answer_holds_looks_deleted(prefect_offline: None) -> None:
    with get_client(sync_client=True) as client:
        children = [str(client.create_flow_run(waited_for).id) for _ in range(LONGEST_ANSWER + 1)]
        states = read_states(client, children)
    assert set(states) == set(children)
    assert all(state is not None for state in states.values())
