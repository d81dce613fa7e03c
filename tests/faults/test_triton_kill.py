"""kill -9 at every durable write of placing a version: Triton sees the version before or the new one, whole."""

import subprocess
import sys
from pathlib import Path

from registry.triton.model import WarmupRow
from registry.triton.repository import CONFIG_FILE, place_triton
from tests.support.triton_bundles import L4, verified, write_bundle

ROW = WarmupRow("good", (("input_ids", (2, 5, 3)), ("attention_mask", (1, 1, 1))))
# One process imports, and forks a child for each write that it dies at.
KILLED_AT_EACH_WRITE = """
import os, shutil, signal, sys
from pathlib import Path
from registry.triton.repository import place_triton
from tests.support.triton_bundles import verified

bundle, home = Path(sys.argv[1]), Path(sys.argv[2])
real = os.fsync
for at in range(1, 100):
    folder = home / str(at)
    shutil.copytree(home / "served", folder)
    child = os.fork()
    if child == 0:
        writes = 0
        def fsync(descriptor):
            global writes
            writes += 1
            if writes == at:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)
        os.fsync = fsync
        place_triton([verified(bundle)], folder / "repository", version=2)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
print(at - 1)
"""


def test_a_kill_at_any_write_leaves_one_whole_version(tmp_path: Path) -> None:
    old = write_bundle(tmp_path / "old", L4, engine=b"1")
    new = write_bundle(tmp_path / "new", L4, engine=b"2", sequence=2, rows=[ROW])
    home = tmp_path / "home"
    place_triton([verified(old)], home / "served" / "repository", version=1)
    before = (home / "served" / "repository" / "opinions" / CONFIG_FILE).read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_WRITE, str(new), str(home)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    kills = int(done.stdout)
    assert kills > 5
    outcomes = set()
    for at in range(1, kills + 1):
        repository = home / str(at) / "repository"
        assert [path.name for path in repository.iterdir()] == ["opinions"]
        config = (repository / "opinions" / CONFIG_FILE).read_bytes()
        outcomes.add(config == before)
        assert (repository / "opinions" / "1" / "model.plan").read_bytes() == b"1"
        if config != before:
            assert (repository / "opinions" / "2" / "model.plan").read_bytes() == b"2"
        place_triton([verified(new)], repository, version=2)
        assert not [path for path in repository.parent.iterdir() if "incoming" in path.name]
    assert outcomes == {True, False}
