"""Each part is calibrated on what it gets when fp32 generates, a past of no tokens included."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from registry.records import Precision
from tasks.calibration.feeds import EncodedFeeds
from tasks.generation.feeds import draw_decoder_feeds
from tasks.generation.parts import DECODER, ENCODER
from tasks.generation.quantize import GenerationRows, quantize_parts
from tasks.generation.trial import open_graphs
from tasks.graphs.layers import list_stored_weights
from tasks.quantization.table import TABLE_FILE, read_table
from tests.support.task_recipes import draw_texts
from tests.unit.tasks.generation.conftest import LARGEST, Writer

pytestmark = pytest.mark.slow
KEY = "past_key_values.0.decoder.key"


def rows_of(writer: Writer, count: int) -> GenerationRows:
    batches = tuple(tuple(batch) for _, batch in writer.encoder.batches(draw_texts(3, count), 4))
    return GenerationRows(EncodedFeeds(writer.encoder, batches), LARGEST["new_tokens"])


def test_a_decoder_is_fed_its_first_step_and_every_length_of_the_past(writer: Writer, tmp_path: Path) -> None:
    texts = draw_texts(3, 40)
    feeds = draw_decoder_feeds(open_graphs(writer.onnx, 8), writer.encoder, texts, into=tmp_path)
    pasts = [feed[KEY].shape[2] for feed in feeds]
    assert {*pasts} >= {0, 1, 2, 3}
    assert pasts.count(0) >= len(texts)
    assert all(len(feed["input_ids"]) == 1 and feed["encoder_attention_mask"].all() for feed in feeds)
    assert len(feeds[:3]) == 3


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_DYNAMIC, Precision.FP16])
def test_every_part_has_the_precision_and_still_writes(writer: Writer, precision: Precision, tmp_path: Path) -> None:
    made = quantize_parts(
        writer.onnx, precision, rows_of(writer, 24), calibration_set_digest="c" * 64, into=tmp_path / "made"
    )
    assert made.precision is precision
    assert made.quantized_from == writer.onnx.digest
    assert (made.calibration_set is None) == (precision is not Precision.INT8)
    assert (made.inputs, made.outputs) == (writer.onnx.inputs, writer.onnx.outputs)
    wanted = onnx.TensorProto.FLOAT16 if precision is Precision.FP16 else onnx.TensorProto.INT8
    for path in made.paths:
        assert wanted in {kind for kind, _ in list_stored_weights(onnx.load(path))}
    feed = writer.encoder.encode(["a good film", "the music of a library"])
    exact, after = (next(open_graphs(each, 8).steps(feed)).logits for each in (writer.onnx, made))
    cosine = (after * exact).sum() / np.linalg.norm(after) / np.linalg.norm(exact)
    assert cosine > 0.8


def test_the_same_rows_give_the_same_graphs(writer: Writer, tmp_path: Path) -> None:
    first, second = (
        quantize_parts(
            writer.onnx, Precision.INT8, rows_of(writer, 12), calibration_set_digest="c" * 64, into=tmp_path / name
        )
        for name in ("first", "second")
    )
    assert first.digest == second.digest
    tables = [read_table(tmp_path / "first" / part / TABLE_FILE) for part in (ENCODER, DECODER)]
    assert all(table.ranges for table in tables)
