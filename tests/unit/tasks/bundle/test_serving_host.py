"""A serving host has the packages of the extras `run` and `cpu`: with these alone every task is checked and answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.task_bundles import GOLDEN_ROWS, write_task_bundle
from tests.support.task_recipes import TASKS

ROOT = Path(__file__).parents[4]
# What `pipeline` brings and `run` does not.
LACKING = (
    "torch", "transformers", "optimum", "huggingface_hub", "safetensors", "onnx", "onnx_ir", "datasets", "pandas",
    "pyarrow", "matplotlib", "jinja2", "psutil", "jiwer", "sacrebleu", "rouge_score", "torchmetrics", "mlflow",
    "prefect", "modelopt", "cyclonedx",
)  # fmt: skip
ANSWER = """
import sys
from pathlib import Path

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[2].split(","):
            raise ModuleNotFoundError(f"this host has no {name}", name=name)

sys.meta_path.insert(0, Lacking())
from registry.bundle.manifest import verify_bundle
from tasks.bundle.answer import load_bundle
from tasks.bundle.check_golden import check_golden
from tasks.bundle.golden import read_golden
from tasks.model_tasks import model_task

bundle = Path(sys.argv[1])
manifest = verify_bundle(bundle)
for check in check_golden(bundle, manifest):
    print(check.outcome, check.inputs)
rows = [row.decoded for row in read_golden(bundle, manifest).rows]
loaded = load_bundle(bundle, manifest, model_task(manifest.source.task))
answers = loaded.answer(rows, [str(at) for at in range(len(rows))])
print("answers", sum(bool(each.shown.line) for each in answers))
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(TASKS))
def test_golden_inputs_and_answers_need_nothing_of_the_pipeline(task: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ANSWER, str(write_task_bundle(tmp_path, task)), ",".join(LACKING)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == [f"same {GOLDEN_ROWS}"] * 2 + [f"answers {GOLDEN_ROWS}"], done.stderr
