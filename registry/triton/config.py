"""EngineManifest → Triton's config.pbtxt, written from the protobuf classes of tritonclient; pure, no I/O.

The fields are those of model_config.proto: https://github.com/triton-inference-server/common/blob/main/protobuf/
model_config.proto. docs/adr/0016-triton-layout.md says why each is set as it is.
"""

from typing import Any

from registry.errors import BadInput
from registry.records import Backend, EngineBuild, ShapeProfile, Tensor, axis_name
from registry.triton.model import TritonModel, engine_file, largest_batch
from registry.triton.warmup import WarmupEntry, warmup_entries

DIGEST_PARAMETER = "enginery_digest"
_DTYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int16": "TYPE_INT16",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


def config_text(model: TritonModel) -> bytes:
    """Return config.pbtxt of a model, UTF-8.

    Raises:
        BadInput: tritonclient is not installed, or a tensor's dtype has no Triton type.
    """
    message = _protobuf()
    from google.protobuf import json_format, text_format  # type: ignore[import-untyped]

    # json_format checks every field's name and type against the protobuf class.
    written: str = text_format.MessageToString(json_format.ParseDict(_fields(model), message), as_utf8=True)
    return written.encode()


def is_own_config(config: bytes) -> bool:
    """Tell whether Enginery wrote a config.pbtxt: its parameters name an engine's digest.

    Raises:
        BadInput: tritonclient is not installed.
    """
    message = _protobuf()
    from google.protobuf import text_format

    try:
        # Somebody else's may have fields of another version of Triton.
        text_format.Parse(config, message, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, RecursionError):
        return False
    return DIGEST_PARAMETER in message.parameters


def _fields(model: TritonModel) -> dict[str, Any]:
    build, largest = model.manifest.build, largest_batch(model)
    fields: dict[str, Any] = {
        "name": model.name,
        "backend": "python" if model.python_model else _name_backend(build.backend),
        "max_batch_size": largest,
        "version_policy": {"specific": {"versions": [model.version]}},
        "input": _inputs(model),
        "output": _outputs(model),
        "instance_group": [_instances(build)],
        "parameters": {key: {"string_value": value} for key, value in _parameters(model)},
        "model_warmup": [_warmup(model, entry) for entry in warmup_entries(model)],
    }
    if len(model.manifests) > 1:
        names = {str(one.build.target.compute_capability): engine_file(model, one) for one in model.manifests}
        fields["cc_model_filenames"] = names
    if largest > 1:
        fields["dynamic_batching"] = {"preferred_batch_size": _preferred(build, largest)}
    if build.backend is Backend.TENSORRT:
        specs = [_graph_spec(model, profile) for profile in build.profiles]
        fields["optimization"] = {"cuda": {"graphs": True, "graph_spec": specs}}
    return fields


def _name_backend(backend: Backend) -> str:
    """Return Triton's name; its backend for ONNX takes the GPU by the instance group's kind."""
    return str(Backend.ONNXRUNTIME if backend is Backend.ONNXRUNTIME_CUDA else backend)


def _inputs(model: TritonModel) -> list[dict[str, Any]]:
    if model.python_model is not None:
        return [_describe_strings(model.python_model.request)]
    return [_described(model, tensor) for tensor in model.manifest.build.inputs]


def _outputs(model: TritonModel) -> list[dict[str, Any]]:
    if model.python_model is not None:
        return [_describe_strings(name) for name in model.python_model.answers]
    classes = model.manifest.source.classes
    outputs = []
    for tensor in model.manifest.build.outputs:
        named = classes and tensor.shape and tensor.shape[-1] == len(classes)
        outputs.append(_described(model, tensor) | ({"label_filename": model.labels_file} if named else {}))
    return outputs


def _describe_strings(name: str) -> dict[str, Any]:
    return {"name": name, "data_type": "TYPE_STRING", "dims": [1]}


def _described(model: TritonModel, tensor: Tensor) -> dict[str, Any]:
    dims = _dims(tensor, batched=largest_batch(model) > 0)
    described = {"name": tensor.name, "data_type": _dtype(tensor), "dims": dims}
    # Triton refuses a tensor without dims: one number per row is [1] outside, and reshaped for the engine.
    return described if dims else described | {"dims": [1], "reshape": {"shape": []}}


def _dtype(tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPES:
        raise BadInput(f"{tensor.name} is {tensor.dtype}, which Triton has no type for: only {', '.join(_DTYPES)}")
    return _DTYPES[tensor.dtype]


def _dims(tensor: Tensor, *, batched: bool) -> list[int]:
    sizes = [-1 if isinstance(size, str) else size for size in tensor.shape]
    return sizes[1:] if batched else sizes


def _instances(build: EngineBuild) -> dict[str, Any]:
    kind = "KIND_CPU" if build.backend is Backend.ONNXRUNTIME else "KIND_GPU"
    # One group that lists every profile: Triton then chooses by shape. A group for each profile would get
    # requests of any shape from the one queue, and fail those that its own profile does not hold.
    several = build.backend is Backend.TENSORRT
    return {"count": 1, "kind": kind, "profile": [str(index) for index in range(len(build.profiles)) if several]}


def _preferred(build: EngineBuild, largest: int) -> list[int]:
    batches = [batch for profile in build.profiles if (batch := profile.axis("batch"))]
    sizes = {size for batch in batches for size in (batch.opt, batch.max)}
    return sorted(size for size in sizes if 1 < size <= largest)


def _graph_spec(model: TritonModel, profile: ShapeProfile) -> dict[str, Any]:
    largest = largest_batch(model)
    best = {name: span.opt for name, span in profile.axes}
    shapes = {}
    for tensor in model.manifest.build.inputs:
        sizes = [best.get(axis_name(size), 1) if isinstance(size, str) else size for size in tensor.shape]
        shapes[tensor.name] = {"dim": sizes[1:] if largest else sizes}
    return {"batch_size": min(best.get("batch", 1), largest), "input": shapes}


def _parameters(model: TritonModel) -> list[tuple[str, str]]:
    first = model.manifest
    common = [
        ("enginery_release", first.release),
        ("enginery_precision", str(first.build.precision)),
        ("enginery_backend_version", first.build.backend_version),
        (DIGEST_PARAMETER, first.build.digest),
    ]
    together = model.manifests if len(model.manifests) > 1 else ()
    each = [(f"{DIGEST_PARAMETER}_{one.build.target.compute_capability}", one.build.digest) for one in together]
    return [*common, *each]


def _warmup(model: TritonModel, entry: WarmupEntry) -> dict[str, Any]:
    types = {given["name"]: given["data_type"] for given in _inputs(model)}
    inputs = {
        key: {"data_type": types[key], "dims": list(dims), "input_data_file": file}
        for key, file, dims, _ in entry.files
    }
    return {"name": entry.name, "batch_size": entry.batch, "inputs": inputs}


def _protobuf() -> Any:
    try:
        # Heavy (gRPC, numpy), and left out of the base install: its protobuf pin is not everybody's.
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ImportError as error:
        raise BadInput("a Triton layout needs tritonclient: pip install 'enginery[triton]'") from error
    return ModelConfig()
