"""TensorRT and TensorRT for RTX through one code path; the vendor's module is the parameter.

Both are strongly typed: precision is in the graph, and a builder only builds. `trt` is the module.
"""

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from registry.errors import BadInput, BuildError, Incompatible
from registry.host.gpu import local_compute_capability
from registry.records import Backend, GpuTarget, Precision, ShapeProfile, Tensor, axis_name
from tasks.backends.contract import BuildInputs, BuiltEngine, read_verified
from tasks.backends.precisions import why_unsupported
from tasks.backends.trt.callbacks import make_monitor, process_logger, start
from tasks.backends.trt.session import TrtSession, load_engine
from tasks.backends.trt.timing import build_with_timing
from tasks.execution.progress import OnProgress
from tasks.generation.parts import PAST_AXIS
from tasks.graphs.external_data import check_external_data

_EXTRAS = {Backend.TENSORRT: "trt", Backend.TENSORRT_RTX: "trt-rtx"}


@dataclass(frozen=True)
class TensorRT:
    """The backend of one of the two packages; its Python module has the backend's name."""

    backend: Backend

    def version(self) -> str:
        """Return the version of the library, like "11.4.0.106".

        Raises:
            Incompatible: it is not installed.
        """
        return str(self._module().__version__)

    def supports(self, precision: Precision, target: GpuTarget) -> str | None:
        """Return None when this library builds the precision for the target's GPU, else the reason."""
        return why_unsupported(precision, target)

    def can_build(self, target: GpuTarget) -> str | None:
        """Return None when this machine can build for the target, else what it needs.

        TensorRT times kernels on the GPU it builds for; TensorRT for RTX builds anywhere.
        """
        if not find_spec(self.backend):
            return f"needs the {self.backend} package{self._place(target)}"
        return None if self.backend is Backend.TENSORRT_RTX else self._needs_gpu(target)

    def can_run(self, target: GpuTarget) -> str | None:
        """Return None when the package and a GPU of the target's compute capability are here, else what is missing."""
        if not find_spec(self.backend):
            return f"needs the {self.backend} package{self._place(target)}"
        return self._needs_gpu(target)

    def _needs_gpu(self, target: GpuTarget) -> str | None:
        local = local_compute_capability()
        if local == target.compute_capability:
            return None
        here = f"this machine's GPU has {local}" if local else "this machine has no CUDA GPU"
        return f"needs compute capability {target.compute_capability} ({here}){self._place(target)}"

    def _place(self, target: GpuTarget) -> str:
        gpu = target.gpu_name or f"GPU of compute capability {target.compute_capability}"
        extra = _EXTRAS[self.backend]
        return f" and a GPU: {gpu}; run it on a worker of pool {target.work_pool} that has enginery[{extra}]"

    def build(self, inputs: BuildInputs, *, into: Path, on_progress: OnProgress) -> BuiltEngine:
        """Write `into`/engine.plan for the target's compute capability.

        TensorRT for RTX has no timing cache that works (its operations do nothing), so `timing` is left alone there.

        Raises:
            BadInput: a profile is not 1 <= min <= opt <= max, or the external data is not safe to read.
            BuildError: the parser or the builder refuses, in its own words, or it was cancelled.
            Incompatible: the library is not here, or does not start on this machine.
        """
        onnx, target, timing = inputs.onnx, inputs.target, inputs.timing
        if reason := self.supports(onnx.precision, target):
            raise BuildError(reason)
        check_external_data(onnx.path)
        trt = self._module()
        logger = process_logger(trt)
        builder = start(trt, trt.Builder, logger)
        network = builder.create_network(0)
        _parse(trt, network, logger, onnx.path)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, inputs.workspace_bytes)
        _choose_capability(trt, config, target)
        _add_profiles(builder, config, network, onnx.inputs, inputs.profiles)
        monitor = make_monitor(trt, on_progress)
        config.progress_monitor = monitor
        if timing is None or self.backend is Backend.TENSORRT_RTX:
            plan = builder.build_serialized_network(network, config)
        else:
            plan = build_with_timing(trt, builder, network, config, timing)
        if monitor.cancelled:
            raise BuildError(f"{onnx.path}: the build for {target.name} was cancelled")
        if plan is None:
            raise BuildError(f"{self.backend} cannot build {onnx.path} for {target.name}: {logger.take_errors()}")
        plan_file = into / "engine.plan"
        plan_file.write_bytes(memoryview(plan))
        kept_inputs = {network.get_input(index).name for index in range(network.num_inputs)}
        return BuiltEngine(
            plan_file, tuple(tensor for tensor in onnx.inputs if tensor.name in kept_inputs), onnx.outputs
        )

    def open_session(
        self,
        engine: Path,
        expected_digest: str,
        *,
        target: GpuTarget,
        backend_version: str,
        threads: int | None = None,  # noqa: ARG002  # the GPU does the work
    ) -> TrtSession:
        """Load an engine onto the local GPU.

        An engine is native code (TensorRT documentation, "Security"): its bytes are checked first, then its
        version and GPU, and only then does TensorRT read it; host code in engines stays disallowed.

        Raises:
            DigestMismatch: the file's bytes differ.
            Incompatible: built by another version, for another GPU, or TensorRT refuses it.
        """
        engine_bytes = read_verified(engine, expected_digest)
        if (installed := self.version()) != backend_version:
            raise Incompatible(
                f"{engine} was built by {self.backend} {backend_version}, {installed} is installed; engines "
                "load only on their own version: install that one, or build the engine again"
            )
        if reason := self.can_run(target):
            raise Incompatible(f"{engine} {reason}")
        return load_engine(self._module(), engine_bytes, name=str(engine))

    def _module(self) -> Any:
        """Import the vendor's untyped module, late because most machines have only one of them."""
        try:
            return importlib.import_module(self.backend)
        except ImportError as error:
            extra = _EXTRAS[self.backend]
            raise Incompatible(f"{self.backend} cannot be imported ({error}): pip install enginery[{extra}]") from error


def _parse(trt: Any, network: Any, logger: Any, graph: Path) -> None:
    """Fill the network from the graph; parse_from_file finds external data beside it."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(graph)):
        return
    refusals = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        place = f"node {error.node_name()!r} ({error.node_operator()})" if error.node() >= 0 else "the graph"
        refusals.append(f"{place}: {error.code()}, {error.desc()}")
    raise BuildError(f"{trt.__name__} {trt.__version__} cannot parse {graph}: {'; '.join(refusals)}")


def _choose_capability(trt: Any, config: Any, target: GpuTarget) -> None:
    """Name the GPU to TensorRT for RTX; TensorRT builds for the one it runs on."""
    if hasattr(config, "set_compute_capability"):
        name = f"SM{str(target.compute_capability).replace('.', '')}"
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)


def _add_profiles(
    builder: Any, config: Any, network: Any, inputs: tuple[Tensor, ...], profiles: tuple[ShapeProfile, ...]
) -> None:
    """Add one optimization profile per ShapeProfile, over every input of the network."""
    named = {tensor.name: tensor.shape for tensor in inputs}
    kept = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = [tensor.name for tensor in kept if -1 in tuple(tensor.shape)]
    if dynamic and not profiles:
        raise BuildError(f"inputs {', '.join(dynamic)} have dynamic axes: give an optimization profile")
    for wanted in profiles:
        profile = builder.create_optimization_profile()
        for tensor in kept:
            shape = named.get(tensor.name, tuple(tensor.shape))
            profile.set_shape(tensor.name, *profile_shapes(tensor.name, shape, wanted))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"TensorRT refuses the optimization profile {wanted}")


def profile_shapes(name: str, shape: tuple[int | str, ...], wanted: ShapeProfile) -> tuple[tuple[int, ...], ...]:
    """Return the min, opt and max shape of an input, whose dynamic axes are the names in `shape`.

    Raises:
        BadInput: a range is not 1 <= min <= opt <= max.
        BuildError: the profile does not have one of its axes.
    """
    for axis, span in wanted.axes:
        least = 0 if axis == PAST_AXIS else 1  # a decoder's first step has no past
        if not least <= span.min <= span.opt <= span.max:
            raise BadInput(
                f"profile's {axis} is min {span.min}, opt {span.opt}, max {span.max}: it must be "
                f"{least} <= min <= opt <= max"
            )
    spans = {size: wanted.axis(size) for size in shape if isinstance(size, str)}
    if missing := [axis_name(axis) for axis, span in spans.items() if span is None]:
        raise BuildError(
            f"input {name} has the dynamic axis {', '.join(missing)}, and the profile has "
            f"{', '.join(axis for axis, _ in wanted.axes)} only: add it to `profiles` in the recipe"
        )
    return tuple(
        tuple(getattr(spans[size], bound) if isinstance(size, str) else size for size in shape)
        for bound in ("min", "opt", "max")
    )
