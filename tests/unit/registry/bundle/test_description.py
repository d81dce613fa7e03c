"""What MLflow's pages say about engines, in words."""

from dataclasses import replace
from typing import Any

import pytest

from registry.bundle.description import describe_model, describe_next, describe_version
from registry.records import Verdict


def test_version_says_what_it_is_what_was_measured_and_what_to_do(manifest_factory: Any) -> None:
    words = describe_version(manifest_factory()[0], 7)
    # The list of versions shows the first line as it is, with its markup.
    assert words.startswith("fp16 for l4: passed, p50 1.25 ms\n")
    assert "Built with tensorrt 11.0." in words
    assert "| latency_p50_ms | 1.25 ms | 1.2 ms to 1.3 ms |" in words
    assert "Measured on NVIDIA L4." in words
    assert "`enginery promote sst2 --target l4 --version 7`" in words
    assert "`enginery fetch sst2 --target l4`" in words
    assert "MLflow's own *Promote model* button and its alias editor pass no gate" in words


def test_version_links_to_the_pages_that_are_named(manifest_factory: Any) -> None:
    words = describe_version(manifest_factory()[0], 7, {"its run": "#/experiments/1/runs/2"})
    assert "\n\n[its run](#/experiments/1/runs/2)\n\n" in words


@pytest.mark.parametrize(
    ("verdict", "waived"),
    [(Verdict.PASSED, False), (Verdict.INCONCLUSIVE, True), (Verdict.UNMEASURED, True)],
)
def test_promote_command_has_a_waiver_where_one_is_needed(verdict: Verdict, waived: bool) -> None:
    assert ("--waiver" in describe_next("sst2", "l4", verdict, 7)) is waived


def test_engine_that_failed_a_gate_has_no_command() -> None:
    assert describe_next("sst2", "l4", Verdict.FAILED, None) == "It was not published: a gate failed."


def test_text_with_a_bar_stays_in_its_cell(manifest_factory: Any) -> None:
    words = describe_version(manifest_factory(reason="a|b")[0], 7)
    assert "| latency | passed | a¦b |" in words


def test_model_says_where_it_came_from_and_how_it_is_promoted(manifest_factory: Any) -> None:
    source = replace(manifest_factory()[0].source, origin=f"distilbert/sst2 + head fitted on {'a1' * 32}")
    words = describe_model("sst2", source)
    assert "Engines of distilbert/sst2 + head fitted on a1a1a1a1a1a1 (text-classification)." in words
    assert "`enginery promote sst2 --target TARGET`" in words
    assert "pass no gate" in words
