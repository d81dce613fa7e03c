"""Fetch of a large engine from a local MLflow server, beside `cp` with `sha256sum` and `mlflow artifacts download`.

All in one run, interleaved, as ratios: `python -m benchmarks.fetch [--megabytes 1000] [--rounds 3]`. The goals: at most
1.3 times cp and sha256sum, faster than mlflow's own download (which verifies nothing), and under 2 s in place. Curl, in
one stream and in four, gets the same bytes from the same server: no client on these cores is much faster.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from registry.digest import record_tree
from registry.mlflow.store import MlflowStore
from registry.promotion.promote import promote
from registry.promotion.rules import Decision
from tests.support.manifests import make_manifest
from tests.support.publisher import Publisher, make_publisher
from tests.support.servers import mlflow_server

ROOT = Path(__file__).parents[1]
ENGINERY = (sys.executable, "-c", "from flows.cli import main; main()")
CHUNK = 2**20
CP, FETCH, MLFLOW, IN_PLACE = "cp, sha256sum", "enginery fetch", "mlflow artifacts download", "enginery fetch, in place"
CURL, CURLS = "curl, sha256sum", "curl in 4 ranges, sha256sum"
# URL, file, bytes; each part is a file of its own, and all are hashed in their order.
IN_ONE = 'curl -sSfo "$1" "$0" && sha256sum "$1"'
IN_FOUR = """part=$(( ($2 + 3) / 4 )); asked=""
for i in 0 1 2 3; do curl -sSfo "$1.$i" -r $((i * part))-$((i * part + part - 1)) "$0" & asked="$asked $!"; done
for curl in $asked; do wait "$curl" || exit 1; done
cat "$1".[0-3] | sha256sum && rm "$1".[0-3]"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the MLflow server")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        bundle = _make_bundle(home / "bundle", asked.megabytes)
        with mlflow_server(home / "mlflow.db", str(home / "artifacts"), workers=asked.workers) as uri:
            publisher = make_publisher(home / "publisher")
            source = _publish(uri, home, bundle, publisher)
            told = {"MLFLOW_TRACKING_URI": uri, "ENGINERY_VERIFY_KEY": str(publisher.trust.public_keys[0])}
            told |= {"ENGINERY_HOME": str(home / "home")}
            rounds = [_round(bundle / "engine.plan", home, source, told) for _ in range(asked.rounds)]
    _report(rounds, asked.megabytes)


def _make_bundle(folder: Path, megabytes: int) -> Path:
    folder.mkdir()
    with (folder / "engine.plan").open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))
    return folder


def _publish(uri: str, home: Path, bundle: Path, publisher: Publisher) -> str:
    store = MlflowStore(uri, home / "state")
    publisher.publish(store, (make_manifest(record_tree(bundle)), bundle))
    promote(store, "sst2", {"l4": 1}, Decision("ana", "the benchmark", datetime.now(UTC)), {})
    return str(store.client.get_model_version("sst2", "1").source)


def _round(engine: Path, home: Path, source: str, told: Mapping[str, str]) -> dict[str, float]:
    """Return the wall seconds of each, with a fresh destination and no dirty pages of the one before."""
    fetch = (*ENGINERY, "fetch", "sst2", "--target", "l4", "--any-host", "--to", str(home / "models"))
    download = (sys.executable, "-m", "mlflow", "artifacts", "download", "--artifact-uri", source)
    served = (
        f"{told['MLFLOW_TRACKING_URI']}/api/2.0/mlflow-artifacts/artifacts{source.removeprefix('mlflow-artifacts:')}"
    )
    curl = (f"{served}/{engine.name}", str(home / "copied"), str(engine.stat().st_size))
    copied = home / "copied"
    seconds = {
        CP: _wall(("sh", "-c", 'cp "$0" "$1" && sha256sum "$1"', str(engine), str(copied)), told),
        FETCH: _wall(fetch, told),
        IN_PLACE: _wall(fetch, told),
        CURL: _wall(("sh", "-c", IN_ONE, *curl), told),
        CURLS: _wall(("sh", "-c", IN_FOUR, *curl), told),
        MLFLOW: _wall((*download, "--dst-path", str(home / "downloaded")), told),
    }
    for folder in ("models", "downloaded"):
        shutil.rmtree(home / folder)
    copied.unlink()
    return seconds


def _wall(command: Sequence[str], told: Mapping[str, str]) -> float:
    os.sync()
    started = time.perf_counter()
    subprocess.run(command, env={**os.environ, **told}, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - started


def _report(rounds: Sequence[Mapping[str, float]], megabytes: int) -> None:
    print(f"{megabytes} MB, {len(rounds)} rounds, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
    for name in rounds[0]:
        walls = [seconds[name] for seconds in rounds]
        ratio = statistics.median(seconds[name] / seconds[CP] for seconds in rounds)
        shown = ", ".join(f"{wall:.2f}" for wall in walls)
        print(f"{name:28} median {statistics.median(walls):6.2f} s  {ratio:5.2f} of {CP}  ({shown})")


if __name__ == "__main__":
    main()
