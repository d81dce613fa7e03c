"""A TensorRT engine on the local GPU, with torch's CUDA tensors as buffers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from registry.errors import BadInput, Incompatible, MeasurementError
from tasks.backends.contract import Array, check_feed
from tasks.backends.trt.callbacks import process_logger, start

# trt.DataType members to torch's dtypes; outputs without a numpy dtype are returned as float32.
_TORCH_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class TrtSession:
    """A session that runs one engine on one stream, from one thread at a time."""

    def __init__(self, trt: Any, engine: Any, logger: Any) -> None:
        import torch  # slow to import, and not needed where engines are only built

        self._torch = torch
        self._logger = logger
        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise Incompatible(f"TensorRT cannot create an execution context for the engine: {logger.take_errors()}")
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._profile = 0
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        reads = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.input_names = tuple(name for name in names if reads[name])
        self.output_names = tuple(name for name in names if not reads[name])
        self._dtypes = {name: getattr(torch, _TORCH_DTYPES[engine.get_tensor_dtype(name).name]) for name in names}

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Copy the feed to the GPU, run the engine, and copy its outputs back.

        Raises:
            BadInput: the feed lacks an input, or no optimization profile covers its shapes.
            MeasurementError: the GPU failed during the run.
        """
        check_feed(feed, self.input_names)
        torch, context = self._torch, self._context
        self._select_profile({name: feed[name].shape for name in self.input_names})
        with torch.cuda.stream(self._stream):
            buffers = {name: self._upload(name, feed[name]) for name in self.input_names}
            for name, tensor in buffers.items():
                if not context.set_input_shape(name, tuple(tensor.shape)):
                    raise BadInput(
                        f"TensorRT refuses shape {list(tensor.shape)} for input {name}: {self._logger.take_errors()}"
                    )
            for name in self.output_names:
                shape = tuple(context.get_tensor_shape(name))
                buffers[name] = torch.empty(shape, dtype=self._dtypes[name], device="cuda")
            for name, tensor in buffers.items():
                context.set_tensor_address(name, tensor.data_ptr())
            if not context.execute_async_v3(self._stream.cuda_stream):
                raise MeasurementError(f"the engine failed to run: {self._logger.take_errors()}")
            outputs = [self._download(buffers[name]) for name in self.output_names]
        self._stream.synchronize()
        return outputs

    def _upload(self, name: str, array: Array) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(array)).to("cuda", self._dtypes[name])

    def _download(self, tensor: Any) -> Array:
        host = tensor.float() if tensor.dtype is self._torch.bfloat16 else tensor
        array: Array = host.cpu().numpy()
        return array

    def _select_profile(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Switch to the first optimization profile that covers the shapes."""
        for index in range(self._engine.num_optimization_profiles):
            if all(self._covers(name, index, shape) for name, shape in shapes.items()):
                break
        else:
            shown = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise BadInput(f"no optimization profile of the engine covers {shown}: build it with a wider profile")
        if index != self._profile:
            self._context.set_optimization_profile_async(index, self._stream.cuda_stream)
            self._profile = index

    def _covers(self, name: str, index: int, shape: Sequence[int]) -> bool:
        least, _, most = self._engine.get_tensor_profile_shape(name, index)
        return len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )


def load_engine(trt: Any, engine_bytes: bytes, *, name: str) -> TrtSession:
    """Deserialise a verified engine; `engine_host_code_allowed` stays off.

    Raises:
        Incompatible: TensorRT cannot load it, or does not start on this machine.
    """
    logger = process_logger(trt)
    runtime = start(trt, trt.Runtime, logger)
    engine = runtime.deserialize_cuda_engine(engine_bytes)
    if engine is None:
        raise Incompatible(f"{name}: {trt.__name__} {trt.__version__} cannot load it: {logger.take_errors()}")
    return TrtSession(trt, engine, logger)
