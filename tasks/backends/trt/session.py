"""A TensorRT engine on the local GPU, with buffers and a stream of NVIDIA's own bindings."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes  # numpy has no bfloat16
import numpy as np
from numpy.typing import DTypeLike

from registry.errors import BadInput, Incompatible, MeasurementError
from tasks.backends.contract import Array, PhaseTimes, check_feed
from tasks.backends.cuda_memory import CudaMemory, count_bytes
from tasks.backends.trt.callbacks import process_logger, start

# trt.DataType members to numpy's dtypes.
_DTYPES: Mapping[str, DTypeLike] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}


class TrtSession:
    """A session that runs one engine on one stream, from one thread at a time."""

    def __init__(self, trt: Any, engine: Any, logger: Any) -> None:
        self._logger = logger
        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise Incompatible(f"TensorRT cannot create an execution context for the engine: {logger.take_errors()}")
        self._memory = CudaMemory()
        self._profile = 0
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        reads = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.input_names = tuple(name for name in names if reads[name])
        self.output_names = tuple(name for name in names if not reads[name])
        self._dtypes = {name: np.dtype(_DTYPES[engine.get_tensor_dtype(name).name]) for name in names}

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Copy the feed to the GPU, run the engine, and copy its outputs back; bfloat16 outputs as float32.

        Raises:
            BadInput: the feed lacks an input, or no optimization profile covers its shapes.
            MeasurementError: the GPU failed during the run.
        """
        check_feed(feed, self.input_names)
        memory, context = self._memory, self._context
        self._select_profile({name: feed[name].shape for name in self.input_names})
        memory.begin()
        for name in self.input_names:
            array = np.asarray(feed[name], self._dtypes[name])
            if not context.set_input_shape(name, array.shape):
                raise BadInput(
                    f"TensorRT refuses shape {list(array.shape)} for input {name}: {self._logger.take_errors()}"
                )
            context.set_tensor_address(name, memory.upload(name, array))
        memory.end_upload()
        shapes = {name: tuple(context.get_tensor_shape(name)) for name in self.output_names}
        sizes = {name: count_bytes(shape, self._dtypes[name]) for name, shape in shapes.items()}
        addresses = {name: memory.reserve(name, size) for name, size in sizes.items()}
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        if not context.execute_async_v3(memory.stream):
            raise MeasurementError(f"the engine failed to run: {self._logger.take_errors()}")
        memory.begin_download()
        arrays = [memory.download(name, addresses[name], shape, self._dtypes[name]) for name, shape in shapes.items()]
        memory.finish()
        outputs = [read() for read in arrays]
        return [array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array for array in outputs]

    def phase_times(self) -> PhaseTimes:
        """Return the times on the GPU of the last call's copies and of its work."""
        return self._memory.phase_times()

    def _select_profile(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Switch to the first optimization profile that covers the shapes."""
        for index in range(self._engine.num_optimization_profiles):
            if all(self._covers(name, index, shape) for name, shape in shapes.items()):
                break
        else:
            shown = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise BadInput(f"no optimization profile of the engine covers {shown}: build it with a wider profile")
        if index != self._profile:
            self._context.set_optimization_profile_async(index, self._memory.stream)
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
