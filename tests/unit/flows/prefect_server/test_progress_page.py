"""Progress on Prefect's pages, with Prefect's functions noted and a clock set by hand."""

import pytest

from flows.prefect_server import progress_page
from flows.prefect_server.progress_page import RELEASE_STAGES, ProgressPage, show_progress
from tests.support.reporters import Told


class Shown:
    """Prefect's artifact functions, noting what they are called with; and a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, object, float]] = []
        self.now = 0.0
        monkeypatch.setattr(progress_page, "create_progress_artifact", self.create)
        monkeypatch.setattr(progress_page, "update_progress_artifact", self.update)

    def create(self, progress: float, key: str, description: str) -> str:
        self.calls.append((key, description, progress))
        return key

    def update(self, artifact: str, progress: float, description: str) -> None:
        self.calls.append((artifact, description, progress))

    def page(self, said: list[str] | None = None) -> ProgressPage:
        heard = [] if said is None else said
        return ProgressPage(Told(heard.append), RELEASE_STAGES, lambda: self.now)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    return Shown(monkeypatch)


def test_a_run_is_shown_from_its_start_and_at_each_stage_at_once(shown: Shown) -> None:
    page = shown.page()
    page.begin("release-engines")
    for what in ("source tiny", "export fp32", "evaluate cpu fp32: rows", "wait for cpu, l4", "wait for l4"):
        page(what, 0.0)
    page.end()
    assert shown.calls == [
        ("progress-release-engines", "begins", 0.0),
        ("progress-release-engines", "stage 1 of 7: source tiny", 0.0),
        ("progress-release-engines", "stage 3 of 7: export fp32", 28.6),
        ("progress-release-engines", "stage 6 of 7: wait for cpu, l4", 71.4),
        ("progress-release-engines", "done", 100.0),
    ]


def test_stages_that_alternate_never_move_the_run_back(shown: Shown) -> None:
    page = shown.page()
    page.begin("release-engines")
    page("publish", 0.5)
    shown.now = 10.0
    page("quantize int8: table", 0.5)
    assert shown.calls[-1] == ("progress-release-engines", "stage 7 of 7: quantize int8: table", 92.9)


def test_fitting_a_head_is_shown_while_it_works(shown: Shown) -> None:
    page = shown.page()
    page.begin("release-engines")
    for tenth in range(10):
        shown.now = float(tenth)
        page("head tiny: encode rows", tenth / 10)
    assert [(done, said) for key, said, done in shown.calls if key == "progress-head-tiny"] == [
        (done, "head tiny: encode rows") for done in (0.0, 30.0, 60.0, 90.0)
    ]  # fmt: skip


def test_progress_is_shown_at_most_once_in_a_few_seconds(shown: Shown) -> None:
    said: list[str] = []
    report = shown.page(said)
    for tenth in range(100):
        shown.now = tenth / 10
        report("build l4 int8: tactics", tenth / 100)
    assert len(said) == 100
    assert shown.calls == [
        ("progress-build-l4-int8", "build l4 int8: tactics", 0.0),
        ("progress-build-l4-int8", "build l4 int8: tactics", 30.0),
        ("progress-build-l4-int8", "build l4 int8: tactics", 60.0),
        ("progress-build-l4-int8", "build l4 int8: tactics", 90.0),
    ]


def test_the_last_phase_of_a_step_is_shown_while_the_next_one_works(shown: Shown) -> None:
    report = shown.page()
    report("quantize int8: table", 0.2)
    report("quantize int8: table", 1.0)
    shown.now = 4.0
    report("publish", 0.0)
    assert shown.calls[-1] == ("progress-quantize-int8", "quantize int8: table", 100.0)


def test_short_steps_have_no_artifact_of_their_own(shown: Shown) -> None:
    report = shown.page()
    for what in ("source tiny", "export", "rebuilding instead of reusing x", "benchmark l4: latency", "publish"):
        report(what, 0.5)
    assert shown.calls == []


def test_a_page_that_fails_is_one_warning_and_the_work_goes_on(
    shown: Shown, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object, **_keys: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(progress_page, "create_progress_artifact", fail)
    said: list[str] = []
    report = shown.page(said)
    report.begin("release-engines")
    for _ in range(5):
        report("build l4 int8: tactics", 0.5)
    report.end()
    assert len(said) == 5
    assert [record.message for record in caplog.records] == ["could not show progress in Prefect: no route"]


def test_an_interrupt_is_not_taken_for_a_failed_page() -> None:
    def stop(_what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ProgressPage(Told(stop), ())("build l4 int8", 0.5)


def test_outside_of_a_flow_run_nothing_is_shown(shown: Shown) -> None:
    report = Told(lambda _: None)
    with show_progress(report, RELEASE_STAGES) as reporter:
        assert reporter is report
    assert shown.calls == []
