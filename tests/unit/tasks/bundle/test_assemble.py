"""A bundle's MLmodel says to MLflow what goes in and out, and lets it load nothing."""

from pathlib import Path
from typing import Any

from mlflow.models import Model
from mlflow.models.signature import ModelSignature

from tasks.bundle.assemble import MODEL_FILE, write_signature


def test_mlflow_reads_inputs_and_outputs_and_no_flavor_that_loads(manifest_factory: Any, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(write_signature(manifest_factory()[0].build))
    model = Model.load(str(tmp_path))
    signature = model.signature
    assert isinstance(signature, ModelSignature)
    assert model.flavors == {}
    assert [(each.name, each.type, each.shape) for each in signature.inputs] == [("input_ids", "int64", (-1, -1))]
    assert [(each.name, each.type, each.shape) for each in signature.outputs] == [("logits", "float32", (-1, 2))]
