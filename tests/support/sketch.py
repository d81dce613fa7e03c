"""An ONNX graph while Hypothesis draws it: its nodes, constants, outputs, and the shapes of its tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Shape = tuple[int | str, ...]
# Names that Enginery or ONNX Runtime would give to tensors of their own.
CLASHES = ("enginery/int8_zero", "x/quantized", "MatMul/quantized_0/weight", "x_quantized", "x/smoothed", "x_scale")


@dataclass
class Sketch:
    """A graph while it is drawn: its nodes, its constants, and the shape of every float tensor in it."""

    draw: st.DrawFn
    opset: int
    values: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def pick(self, *choices: Any) -> Any:
        """Draw one of `choices`."""
        return self.draw(st.sampled_from(choices))

    def name(self) -> str:
        """Return a tensor name that is free, now and then one that others would like to have."""
        taken = {*self.constants, *self.shapes, *(name for node in self.nodes for name in node.output)}
        free = [name for name in CLASHES if name not in taken]
        return str(self.pick(*free)) if free and self.pick(*[False] * 9, True) else f"t{len(taken)}"

    def add(self, kind: str, inputs: list[str], shape: Shape | None = None, outputs: int = 1, **attributes: Any) -> str:
        """Add a node, and return its first output, which others may read where its `shape` is given."""
        names = []
        for _ in range(outputs):
            names.append(self.name())
            self.shapes.setdefault(names[-1], ())
        for name in names:
            del self.shapes[name]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        if shape is not None:
            self.shapes[names[0]] = shape
        return names[0]

    def constant(self, values: Any) -> str:
        """Store a constant as an initializer, or as what a Constant node gives."""
        stored = np.asarray(values)
        name = self.name()
        if self.pick(False, False, False, True):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(stored)))
        else:
            self.constants[name] = stored
        return name

    def weight(self, *shape: int) -> str:
        """Return a weight: a new one, or one that another node reads; some are tiny, some have dead channels."""
        shared = [
            name for name, stored in self.constants.items() if stored.shape == shape and stored.dtype == np.float32
        ]
        if shared and self.pick(False, True):
            return str(self.pick(*shared))
        size = self.pick(*[0.3] * 8, 1e-15, 3.0)
        values = (self.values.standard_normal(shape) * size).astype(np.float32)
        if self.pick(*[False] * 5, True):
            values[self.pick(0, -1)] = 0
        if self.pick(*[False] * 5, True):
            values[..., self.pick(0, -1)] = 0
        return self.constant(values)

    def vector(self, width: int, middle: float = 0.0) -> str:
        """Return a constant of one value a channel; some are large, some 0."""
        values = (middle + self.values.standard_normal(width) * 0.5).astype(np.float32)
        odd = self.pick("no", "no", "no", "outlier", "zero", "all zero")
        if odd == "all zero":
            values[:] = 0
        elif odd != "no":
            values[self.pick(0, width - 1)] = 50 if odd == "outlier" else 0
        return self.constant(values)

    def find(self, fits: Callable[[Shape], bool]) -> str | None:
        """Draw a tensor whose shape fits, mostly the newest; None where there is none."""
        found = [name for name, shape in self.shapes.items() if fits(shape)]
        return self.pick(found[-1], found[-1], *found) if found else None
