"""A session of the fp32 graph that also returns what every layer reads."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from registry.errors import BadInput
from tasks.calibration.rows import BATCH_ROWS, Feed
from tasks.graphs.files import has_external_data
from tasks.graphs.layers import Floats, Graph, groups
from tasks.graphs.session import exact_options, providers

# What a graph answers to a row that it cannot take: ids beyond the vocabulary, more tokens than positions.
REFUSALS = (InvalidArgument, RuntimeException, Fail)


class Probe:
    """The inputs of all MatMul, Gemm and Conv with a constant weight, by tensor name.

    Raises:
        BadInput: the graph has no such layer.
    """

    def __init__(self, source: Path) -> None:
        graph = Graph(onnx.load(source, load_external_data=False))
        linears = graph.linears()
        if not linears:
            raise BadInput(f"{source} has no MatMul, Gemm or Conv with a constant float32 weight to quantize")
        self.tensors = tuple(groups(linears))
        self.images = frozenset(each.input for each in linears if each.op == "Conv")
        inputs = {each.name: each for each in graph.proto.graph.input}
        self._fed = [name for name in self.tensors if name in inputs]
        first = [each.type.tensor_type.shape.dim[:1] for each in inputs.values()]
        self.most_rows = 1 if any(axes and axes[0].dim_value == 1 for axes in first) else BATCH_ROWS
        present = inputs.keys() | graph.output_names
        hidden = [name for name in self.tensors if name not in present]
        external = has_external_data(graph.proto)
        del graph
        self._session = open_session(source, hidden, external=external)
        self._outputs = [name for name in self.tensors if name not in inputs]

    def run(self, feed: Feed) -> dict[str, Floats] | None:
        """Each layer's input for rows of one length; None when the rows or what they give are not finite."""
        if not all(column.size and np.isfinite(column).all() for column in feed.values()):
            return None
        try:
            values: list[Floats] = self._session.run(self._outputs, feed)
        except REFUSALS:
            return None
        # ReleaseRequest for no output, ONNX Runtime gives all: the graph's own are not looked at.
        return dict(zip(self._outputs, values, strict=False)) | {name: feed[name] for name in self._fed}

    def tokens(self, tensor: str, value: Floats) -> Floats:
        """A tensor as [rows, T, K]: K channels of every token, or of every position of an image."""
        if tensor in self.images:
            value = np.moveaxis(value, 1, -1)
        return value.reshape(len(value), -1, value.shape[-1])


def open_session(source: Path, tensors: list[str], *, external: bool) -> ort.InferenceSession:
    """`source` with more outputs, made without parsing its weights: concatenated protobuf messages merge.

    (protobuf.dev/programming-guides/encoding, "Last One Wins": repeated fields are concatenated.)
    """
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors]
    suffix = onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString()
    options = exact_options()
    options.log_severity_level = 4  # a refused row is counted, not printed
    # The counting thread needs the core that a spinning worker of ONNX Runtime would burn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if external:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.parent))
        return ort.InferenceSession(source.read_bytes() + suffix, options, providers=providers())
    with tempfile.TemporaryDirectory() as folder:
        probed = Path(folder) / "probed.onnx"
        shutil.copyfile(source, probed)
        with probed.open("ab") as file:
            file.write(suffix)
        return ort.InferenceSession(probed, options, providers=providers())
