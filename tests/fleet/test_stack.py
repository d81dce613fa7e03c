"""`enginery up` and `down`, and what a real stack shows: deployments, promotion, events, automations, lost runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import yaml

from registry.errors import BadInput
from registry.mlflow.store import MlflowStore
from registry.records import Verdict
from tests.support.checkouts import Checkout, make_checkout
from tests.support.manifests import ManifestFactory
from tests.support.servers import BUCKET, free_port, s3_server
from tests.support.stacks import Stack, marked, wait

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
NOBODY = "00000000-0000-0000-0000-000000000000"
SLEEPER = """
pull: [{prefect.deployments.steps.set_working_directory: {directory: "{{ $ENGINERY_CHECKOUT }}"}}]
deployments:
  - name: sleeper
    entrypoint: sleeper.py:sleeper
    tags: [enginery]
    work_pool: {name: releases, job_variables: {env: {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: "30"}}}
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE, grace_period_seconds: 60}
  - name: t4
    entrypoint: swap.py:swap_engine
    work_pool: {name: gpu-t4}
"""
SLEEPER_FLOW = """
import os, time
from pathlib import Path
from prefect import flow

@flow
def sleeper(into: str):
    Path(into).write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Short paths that PostgreSQL's own user may enter, gone with the module."""
    folders = []

    def home(name: str) -> Path:
        path = Path(tempfile.mkdtemp(prefix=f"enginery-{name}-"))
        path.chmod(0o755)
        folders.append(path)
        return path

    yield home
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The shipped recipes and fleet, and two deployments of the tests' own."""
    checkout = make_checkout(tmp_path_factory.mktemp("checkout"))
    (checkout.folder / "sleeper.yaml").write_text(SLEEPER, encoding="utf-8")
    (checkout.folder / "sleeper.py").write_text(SLEEPER_FLOW, encoding="utf-8")
    example = Path(__file__).parents[2] / "docs" / "automations" / "swap.py"
    (checkout.folder / "swap.py").write_bytes(example.read_bytes())
    return checkout


@pytest.fixture(scope="module")
def stack(checkout: Checkout, homes: Callable[[str], Path]) -> Iterator[Stack]:
    """The whole stack with its artifacts in S3."""
    home = homes("up")
    with s3_server() as keys:
        environment = keys | {"ENGINERY_HOME": str(home)}
        ports = ["--mlflow-port", str(free_port()), "--prefect-port", str(free_port())]
        try:
            output = checkout.enginery("up", *ports, "--artifacts", f"s3://{BUCKET}/bundles", environment=environment)
            exported = [line.removeprefix("export ") for line in output.splitlines() if line.startswith("export ")]
            exports = dict(line.split("=", 1) for line in exported)
            values = {name: value.strip("'") for name, value in exports.items()}
            started = Stack(checkout, home, environment | values)
            checkout.run(
                *("-m", "prefect", "--no-prompt", "deploy", "--prefect-file", "sleeper.yaml", "--all"),
                environment=started.environment,
            )
            yield started
        finally:
            checkout.enginery("down", environment=environment)
        assert marked(home) == []
        assert (home / "stack" / "postgres" / "data" / "PG_VERSION").exists()


def test_every_deployment_exists_and_an_unknown_choice_is_refused(stack: Stack) -> None:
    deployments = {record["name"]: record for record in stack.api("/deployments/filter", limit=100)}
    expected = yaml.safe_load((stack.checkout.folder / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert {record["name"] for record in expected} <= set(deployments)
    schema = deployments["promote"]["parameter_openapi_schema"]["properties"]["targets"]["items"]
    assert schema["enum"][:2] == ["cpu", "cuda"]
    answer = stack.start("promote-engine/promote", model="m", targets=["gpu-of-nobody"], why="w", who="w")
    assert answer.status_code in (409, 422)
    assert "gpu-of-nobody" in answer.text
    pools = {pool["name"]: pool["status"] for pool in stack.api("/work_pools/filter", limit=100)}
    assert {pools[name] for name in ("releases", "cpu", "rtx")} == {"READY"}
    assert pools["gpu-l4"] == "NOT_READY"  # nobody here can build for it


def test_the_pages_of_prefect_ask_the_server_that_they_came_from(stack: Stack) -> None:
    server = stack.environment["PREFECT_API_URL"].removesuffix("/api")
    assert ":4200" not in server
    assert requests.get(f"{server}/ui-settings", timeout=30).json()["api_url"] == "/api"


def test_the_nightly_refresh_is_scheduled(stack: Stack) -> None:
    nightly = stack.read("/deployments/name/refresh-engines/nightly")["id"]
    scheduled = {"deployments": {"id": {"any_": [nightly]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    wait(lambda: stack.api("/flow_runs/filter", **scheduled), "a scheduled run", 90)


def test_a_promotion_moves_the_alias_tells_prefect_and_starts_a_deployment(
    stack: Stack, tmp_path: Path, manifest_factory: ManifestFactory
) -> None:
    store = MlflowStore(stack.environment["MLFLOW_TRACKING_URI"], tmp_path / "store")
    for number, verdict in enumerate((Verdict.PASSED, Verdict.FAILED, Verdict.PASSED), start=1):
        store.publish(*manifest_factory(bytes([number]), sequence=number, target="l4", verdict=verdict))
    swap = stack.read("/deployments/name/swap-engine/t4")["id"]
    _make_automations(stack, swap, tmp_path)
    parameters = {"model": "sst2", "targets": ["l4"], "why": "a test", "who": "ana"}
    state = stack.end_of(promoting := stack.start("promote-engine/promote", **parameters, version=1))
    assert state["type"] == "COMPLETED", state["message"]
    assert store.aliases("sst2")["production-l4"] == 1
    (event,) = store.events("sst2")
    assert event.flow_run == promoting.json()["id"]

    refused = stack.end_of(stack.start("promote-engine/promote", **parameters, version=2))
    assert refused["type"] == "FAILED"
    assert refused["message"].startswith("sst2 version 2 is failed for l4")

    events = wait(lambda: len(seen := stack.engine_events()) == 2 and seen, "two events")
    assert [record["event"] for record in events] == ["enginery.engine.promoted", "enginery.engine.refused"]
    assert events[0]["resource"]["prefect.resource.id"] == "enginery.engine.sst2.l4"
    assert events[0]["payload"]["to"] == 1
    assert events[0]["related"][0]["prefect.resource.id"] == f"prefect.flow-run.{event.flow_run}"
    assert events[1]["payload"]["reason"] == refused["message"]

    swaps = {"deployments": {"id": {"any_": [swap]}}}
    (run,) = wait(lambda: stack.api("/flow_runs/filter", **swaps), "the deployment that the promotion starts")
    assert run["parameters"] == {"model": "sst2", "target": "l4"}
    promoting_by_command = ("promote", "sst2", "--target", "l4", "--version", "3")
    assert "version 1 -> version 3" in stack.checkout.enginery(*promoting_by_command, environment=stack.environment)
    (*_, last) = wait(lambda: len(events := stack.engine_events()) == 3 and events, "the command's event")
    assert (last["event"], last["payload"]["from"], last["payload"]["to"]) == ("enginery.engine.promoted", 1, 3)


def _make_automations(stack: Stack, deployment: str, folder: Path) -> None:
    """The examples of docs/automations, with ids of this server in them."""
    examples = Path(__file__).parents[2] / "docs" / "automations"
    slug = stack.read("/block_types/slug/slack-webhook")
    schema = stack.api("/block_schemas/filter", block_schemas={"block_type_id": {"any_": [slug["id"]]}})[0]
    block = stack.api(
        "/block_documents/",
        name="team",
        data={"url": "https://example.invalid/hook"},
        block_schema_id=schema["id"],
        block_type_id=slug["id"],
    )
    texts = []
    for file, identity in (("notify-on-refusal.yaml", block["id"]), ("swap-on-promotion.yaml", deployment)):
        text = (examples / file).read_text(encoding="utf-8")
        assert NOBODY in text
        texts.append(text.replace(NOBODY, identity))
    (folder / "automations.yaml").write_text("".join(texts), encoding="utf-8")
    creating = ("-m", "prefect", "automation", "create", "--from-file", str(folder / "automations.yaml"))
    stack.checkout.run(*creating, environment=stack.environment)


def test_the_slot_of_a_run_whose_worker_and_process_were_killed_comes_free_in_two_minutes(
    stack: Stack, tmp_path: Path
) -> None:
    into = tmp_path / "pid"
    started = stack.start("sleeper/sleeper", into=str(into))
    pid = int(wait(lambda: into.exists() and into.read_text(encoding="utf-8"), "the flow's process"))
    limit = stack.read("/deployments/name/sleeper/sleeper")["global_concurrency_limit"]
    assert limit["active_slots"] == 1
    os.kill(stack.pids["worker-releases"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    # What died comes back, and what lives is left alone.
    os.killpg(stack.pids["mlflow"], signal.SIGKILL)
    before = stack.pids
    output = stack.checkout.enginery("up", environment=stack.environment)
    after = stack.pids
    assert {name for name in before if before[name] != after[name]} == {"worker-releases", "mlflow"}, output
    assert requests.get(f"{stack.environment['MLFLOW_TRACKING_URI']}/health", timeout=10).ok

    state = stack.end_of(started)
    assert state["type"] == "CRASHED"
    assert "nothing was heard of it" in state["message"]
    wait(lambda: stack.read("/deployments/name/sleeper/sleeper")["global_concurrency_limit"]["active_slots"] == 0, "it")
    assert time.monotonic() - began < 120


def test_other_options_are_refused_while_it_runs(stack: Stack) -> None:
    from flows.stack.up_and_down import StackOptions, start_stack

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(stack.checkout.folder)
        with pytest.raises(BadInput, match="run `enginery down`, then"):
            start_stack(stack.home, StackOptions(Path("recipes/fleet.yaml"), mlflow_port=free_port()), print)


def test_an_up_that_is_killed_half_way_leaves_nothing_after_a_down(
    checkout: Checkout, homes: Callable[[str], Path]
) -> None:
    home = homes("half")
    environment = {"ENGINERY_HOME": str(home)}
    ports = ["--mlflow-port", str(free_port()), "--prefect-port", str(free_port())]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "up", *ports],
        cwd=checkout.folder,
        env=checkout.environment(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    state = home / "stack.json"
    try:
        wait(lambda: state.exists() and '"prefect":' in state.read_text(encoding="utf-8"), "the Prefect server's start")
        process.kill()
        process.wait()
        assert len(marked(home)) >= 3
    finally:
        process.kill()
        checkout.enginery("down", environment=environment)
    assert marked(home) == []
    assert json.loads(state.read_text(encoding="utf-8"))["services"] == {}
