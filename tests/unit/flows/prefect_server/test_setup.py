"""The automations that mark lost runs as Crashed: when an existing one is up to date."""

import random

import pytest

pytest.importorskip("prefect")

from prefect.client.schemas.objects import StateType
from prefect.events.schemas.automations import Automation

from flows.prefect_server.setup import SILENT_SECONDS, make_automation, select_behavior

AFTER = {"prefect.flow-run.Running", "prefect.flow-run.heartbeat"}
# So many that two orders of a set differ whatever the seed of Python's hashes.
EXPECT = {f"prefect.flow-run.{number}" for number in range(100)}


def test_an_automation_that_a_server_gives_back_in_another_order_is_the_same() -> None:
    expected = make_automation("one", AFTER, EXPECT, SILENT_SECONDS)
    served = expected.model_dump(mode="json") | {"id": "aca807ee-8135-42cc-bb24-25a474d42d3d"}
    shuffle = random.Random(0).shuffle  # noqa: S311 - no secret
    for _ in range(50):
        for field in ("after", "expect"):
            shuffle(served["trigger"][field])
        assert select_behavior(Automation.model_validate(served)) == select_behavior(expected)


def test_another_patience_is_another_automation() -> None:
    one, other = (make_automation("one", AFTER, EXPECT, seconds) for seconds in (SILENT_SECONDS, SILENT_SECONDS + 1))
    assert select_behavior(one) != select_behavior(other)
    assert one.actions[0].state is StateType.CRASHED  # type: ignore[union-attr]
