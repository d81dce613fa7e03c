"""A session of the fp32 graph that also returns every layer's input."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from registry.errors import BadInput
from registry.records import fixed_batch
from tasks.calibration.rows import BATCH_ROWS, Batch, Feed
from tasks.graphs.files import has_external_data, list_tensors
from tasks.graphs.layers import Floats, Graph, group_by_input
from tasks.graphs.session import choose_providers, exact_options

# ONNX Runtime's errors for a row that the graph cannot run: ids beyond the vocabulary, more tokens than positions.
REFUSALS = (InvalidArgument, RuntimeException, Fail)


class Probe:
    """A session that returns the inputs of all MatMul, Gemm and Conv with a constant weight, by tensor name.

    Raises:
        BadInput: the graph has no such layer.
    """

    def __init__(self, graph_file: Path) -> None:
        graph = Graph(onnx.load(graph_file, load_external_data=False))
        linears = graph.list_linears()
        if not linears:
            raise BadInput("the graph has no MatMul, Gemm or Conv with a constant float32 weight to quantize")
        self.tensors = tuple(group_by_input(linears))
        self.images = frozenset(layer.input for layer in linears if layer.op == "Conv")
        inputs = {value.name: value for value in graph.proto.graph.input}
        self._fed = [name for name in self.tensors if name in inputs]
        first = [value.type.tensor_type.shape.dim[:1] for value in inputs.values()]
        size = fixed_batch(list_tensors(inputs.values()))
        # The rows of each batch, where there may be no fewer and no more.
        self.fixed_rows = size if size != 1 else None
        self.most_rows = 1 if any(axes and axes[0].dim_value == 1 for axes in first) else BATCH_ROWS
        present = inputs.keys() | graph.output_names
        hidden = [name for name in self.tensors if name not in present]
        external = has_external_data(graph.proto)
        del graph
        self._session = open_session(graph_file, hidden, external=external)
        # Whether every tensor's first axis is the rows; None until two rows of several tokens were compared with one.
        self._rows_first: bool | None = None
        self._outputs = [name for name in self.tensors if name not in inputs]

    def run(self, feed: Feed) -> dict[str, Floats] | None:
        """Return each layer's input for rows of one length; None when the rows are not finite or are refused.

        A row may have empty inputs, such as a past of length 0, but not all of them, and it has a token.
        """
        columns = feed.values()
        has_token = any(column.size for column in columns) and feed.get("attention_mask", np.ones(1)).size
        if not has_token or not all(np.isfinite(column).all() for column in columns):
            return None
        try:
            values: list[Floats] = self._session.run(self._outputs, feed)
        except REFUSALS:
            return None
        # With no output named, ONNX Runtime returns the graph's own: the zip drops those.
        return dict(zip(self._outputs, values, strict=False)) | {name: feed[name] for name in self._fed}

    def run_batch(self, batch: Batch) -> dict[str, Floats] | None:
        """Return each layer's input for a batch whose rows can be told apart in it; None where it must be split.

        They cannot where a graph lays the tokens of all rows in one axis, or puts another axis first: then a value of
        several rows does not say which row it is of, and the rows run one by one.
        """
        if self.fixed_rows is not None:
            return self.run(batch.to_feed())
        if len(batch.rows) > 1 and self._rows_first is False:
            return None
        captured = self.run(batch.to_feed())
        if captured is None or len(batch.rows) == 1 or self._rows_first:
            return captured
        single = self.run(Batch(batch.rows[:1]).to_feed())
        if single is None:
            return None
        rows = len(batch.rows)
        rows_first = all(
            value.shape == (rows, *single[name].shape[1:]) and len(single[name]) == 1
            for name, value in captured.items()
        )
        # One token a row: [rows · tokens, K] looks the same, and is.
        if not rows_first or batch.rows[0].tokens > 1:
            self._rows_first = rows_first
        return captured if rows_first else None

    def reshape_tokens(self, tensor: str, value: Floats, rows: int) -> Floats:
        """Return a tensor of `rows` rows as [rows, T, K]: K channels of every token, or position of an image."""
        if tensor in self.images:
            value = np.moveaxis(value, 1, -1)
        if self.fixed_rows is not None and value.size // value.shape[-1] % rows:
            return np.broadcast_to(
                value.reshape(1, -1, value.shape[-1]), (rows, value.size // value.shape[-1], value.shape[-1])
            )
        return value.reshape(rows, -1, value.shape[-1])


def open_session(graph_file: Path, tensors: list[str], *, external: bool) -> ort.InferenceSession:
    """Open a session of a graph that also returns `tensors`, without parsing its weights here.

    The extra outputs are appended to the file's bytes: concatenated protobuf messages merge
    (protobuf.dev/programming-guides/encoding, "Last One Wins": repeated fields are concatenated). `external` says
    that the weights are stored in other files of the same folder.
    """
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors]
    suffix = onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString()
    options = exact_options()
    options.log_severity_level = 4  # a refused row is counted, not printed
    # The counting thread needs the core that a spinning worker of ONNX Runtime would burn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if external:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph_file.parent))
        return ort.InferenceSession(graph_file.read_bytes() + suffix, options, providers=choose_providers())
    with tempfile.TemporaryDirectory() as folder:
        probed = Path(folder) / "probed.onnx"
        shutil.copyfile(graph_file, probed)
        with probed.open("ab") as file:
            file.write(suffix)
        return ort.InferenceSession(probed, options, providers=choose_providers())
