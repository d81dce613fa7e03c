"""Write a reduced graph as a folder that shows the difference, without names or anything else of the model's."""

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from registry.errors import BadInput
from tasks.graphs.layers import Graph, walk_nodes
from tasks.reduction import show
from tasks.reduction.differences import open_model, run_model
from tasks.reduction.search import Reduced

# Operators that are listed in their order.
LISTED = 12
README = """# A difference between {precision} and fp32

Two ONNX graphs of {nodes}, one input, and a script: `python show.py` prints how far their
outputs are apart, and exits with 1 where that is more than {tolerance:g} of fp32's (Euclidean norms). It needs
numpy and onnxruntime.

- measured here: {error:.4g}
{engine}- `subgraph_fp32.onnx`: {exact_operators}
- `subgraph_{precision}.onnx`: {made_operators}
- `input.npz`: what both are fed: {fed}. These are values inside the fp32 model, on one row of its evaluation data.
- `expected.npz`: the outputs of both, the difference and the tolerance.

## What of the model is in it

{weights}
{names} The row itself and the rest of the model are not in it.

## Versions

{versions}
"""


@dataclass(frozen=True)
class CaseNotes:
    """What a folder says beside its graphs: the precision, the tolerance, versions, and an engine's own difference.

    `parameters` counts the values of all constants of the model; `engine` says in words what an engine of the piece
    did, and is empty where none ran.
    """

    precision: str
    tolerance: float
    parameters: int
    versions: tuple[tuple[str, str], ...]
    engine: str = ""


def write_folder(reduced: Reduced, notes: CaseNotes, into: Path, *, keep_names: bool = False) -> Path:
    """Write the folder `into`, whole or not at all, and return it.

    Raises:
        BadInput: it exists already and is not empty, or cannot be written.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise BadInput(f"{into} exists already: choose another folder with --into, or remove it")
    scratch = into.with_name(f".{into.name}.part")
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        _write_files(reduced, notes, scratch, keep_names=keep_names)
        if into.exists():
            into.rmdir()
        scratch.rename(into)
    except OSError as error:
        raise BadInput(f"{into} cannot be written: {error.strerror}; choose another folder with --into") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return into


def _write_files(reduced: Reduced, notes: CaseNotes, into: Path, *, keep_names: bool) -> None:
    names = {} if keep_names else _choose_names(reduced)
    exact, made = (rename(model, names, keep_names=keep_names) for model in (reduced.exact, reduced.made))
    values = {names.get(name, name): value for name, value in reduced.values.items()}
    onnx.save(exact, into / "subgraph_fp32.onnx")
    onnx.save(made, into / f"subgraph_{notes.precision}.onnx")
    np.savez(into / "input.npz", **values)  # type: ignore[arg-type]
    outputs = [next(iter(run_model(open_model(model), values).values())) for model in (exact, made)]
    figures = {"fp32": outputs[0], "other": outputs[1], "difference": reduced.error, "tolerance": notes.tolerance}
    np.savez(into / "expected.npz", **figures)  # type: ignore[arg-type]
    shutil.copyfile(show.__file__, into / "show.py")
    text = README.format(
        precision=notes.precision,
        nodes=f"{len(exact.graph.node)} and {len(made.graph.node)} nodes",
        tolerance=notes.tolerance,
        error=reduced.error,
        engine=f"- {notes.engine}\n" if notes.engine else "",
        exact_operators=_list_operators(exact),
        made_operators=_list_operators(made),
        fed=", ".join(f"`{name}` {value.dtype} {list(value.shape)}" for name, value in values.items()),
        weights=describe_constants(exact, made, notes.parameters),
        names="Names are those of the model, as was asked for." if keep_names else "Nodes and tensors have new names.",
        versions="\n".join(f"- {name} {version}" for name, version in notes.versions),
    )
    (into / "README.md").write_text(text, encoding="utf-8")


def describe_constants(exact: onnx.ModelProto, made: onnx.ModelProto, parameters: int) -> str:
    """Say which constants of the model a folder holds, as a list in Markdown."""
    constants = {title: Graph(model).constants for title, model in (("fp32", exact), ("other", made))}
    held = sum(int(np.prod(tensor.dims)) for tensor in constants["fp32"].values())
    share = f", {held / parameters:.2%} of its {parameters:,}" if parameters else ""
    lines = [f"{held:,} constant values of the fp32 model{share}, and what was made of them:", ""]
    for title, tensors in constants.items():
        large = {name: tensor for name, tensor in tensors.items() if np.prod(tensor.dims) > 1}
        lines += [
            f"- {title} `{name}`: {onnx.TensorProto.DataType.Name(tensor.data_type).lower()} {list(tensor.dims)}"
            for name, tensor in large.items()
        ]
        lines += [f"- {title}: {len(tensors) - len(large)} of one value"] if len(large) < len(tensors) else []
    return "\n".join(lines) + "\n"


def _list_operators(model: onnx.ModelProto) -> str:
    """List a few operators in order, and count many."""
    operators = [node.op_type for node in model.graph.node if node.op_type != "Constant"]
    if len(operators) <= LISTED:
        return ", ".join(operators)
    return ", ".join(f"{count} {operator}" for operator, count in Counter(operators).most_common())


def _choose_names(reduced: Reduced) -> dict[str, str]:
    """Return new names for all tensors of both models; one that both have gets one name."""
    tensors = dict.fromkeys(
        name for model in (reduced.exact, reduced.made) for name in _list_tensors(model.graph) if name
    )
    names = {name: f"t{number}" for number, name in enumerate(tensors)}
    names |= {name: f"in{number}" for number, name in enumerate(reduced.values)}
    return names | {reduced.piece.output: "out"}


def _list_tensors(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output))
    yield from (tensor.name for tensor in graph.initializer)
    for node in walk_nodes(graph):
        yield from (*node.input, *node.output)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from (value.name for value in (*body.input, *body.output))
                yield from (tensor.name for tensor in body.initializer)


def rename(model: onnx.ModelProto, names: Mapping[str, str], *, keep_names: bool) -> onnx.ModelProto:
    """Return a copy with other names of tensors and nodes and without documentation; with `keep_names` as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if not keep_names:
        _rename_graph(copy.graph, names)
        for number, node in enumerate(walk_nodes(copy.graph)):
            node.name, node.doc_string = f"n{number}", ""
            del node.metadata_props[:]
    return copy


def _rename_graph(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    graph.name, graph.doc_string = "subgraph", ""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name, value.doc_string = names.get(value.name, value.name), ""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _rename_graph(body, names)
