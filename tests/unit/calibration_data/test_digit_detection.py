"""The boxes of scenes are those of their masks, and what is trained on them answers as Ultralytics' networks do."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from calibration_data.digits import detection, scenes
from calibration_data.digits.make import CLASSES
from calibration_data.reader import Rows, load_split
from calibration_data.splits import DatasetRef
from tasks.model_tasks.images.object_detection import OBJECT_DETECTION


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    detection.write_rows(folder)
    return folder


def read(folder: Path, split: str) -> Rows:
    columns = (("image", "image"), ("boxes", "objects.bbox"), ("labels", "objects.category"))
    ref = DatasetRef(str(folder), columns, constants=(("box_format", "coco"),))
    return load_split(ref, OBJECT_DETECTION, split)


def test_every_scene_has_boxes_with_the_digits_of_its_mask(folder: Path) -> None:
    drawn = dict(scenes.draw_splits())
    for split, (count, _, _) in scenes.SPLITS.items():
        rows = read(folder, split)
        assert (len(rows.inputs), rows.quarantined, rows.classes) == (count, 0, CLASSES)
        for target, scene in zip(rows.targets, drawn[split], strict=True):
            mask = np.zeros_like(scene.mask)
            for label, (left, top, right, bottom) in zip(target["labels"], target["boxes"], strict=True):
                mask[int(top) : int(bottom), int(left) : int(right)] = label + 1
            np.testing.assert_array_equal(mask, scene.mask)


@pytest.mark.long
def test_what_is_trained_on_them_finds_digits(folder: Path, tmp_path: Path) -> None:
    """Three rounds of the sixteen."""
    detection.train(folder, tmp_path, epochs=3)
    rows = read(folder, "evaluation")
    encoder = OBJECT_DETECTION.open_encoder(tmp_path, ["images"], {})
    session = ort.InferenceSession(str(tmp_path / detection.GRAPH_FILE), providers=["CPUExecutionProvider"])
    answers: list[NDArray[Any]] = []
    for _, batch in encoder.batches(rows.inputs, 50):
        outputs = session.run(None, encoder.encode(batch))
        OBJECT_DETECTION.check_outputs([output.shape for output in outputs], len(CLASSES), encoder)
        answers += OBJECT_DETECTION.answers(OBJECT_DETECTION.reduce_outputs(outputs, batch, encoder), batch, encoder)
    metric = OBJECT_DETECTION.metrics[1]
    assert metric.figure(metric.score(answers, rows.targets, answers)) > 0.3
