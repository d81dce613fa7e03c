"""Show that two small ONNX graphs differ on one input: needs numpy and onnxruntime, and the files beside it.

Prints |other - fp32| / |fp32| of the output, and exits with 1 where that is more than the tolerance.
"""

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

# A runtime's casts differ from those of the machine that wrote `expected.npz` by rounding.
ROUNDING = 1e-3
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def run(file: Path, values: Any) -> Any:
    """Return the output of a graph, as float64."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # As the engine ran: these two of ONNX Runtime's optimizers are wrong for some float8 graphs.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "ReluQuantRewrite;ClipQuantRewrite")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {
        each.name: values[each.name].astype(FLOATS.get(each.type, values[each.name].dtype))
        for each in session.get_inputs()
    }
    return session.run(None, feed)[0].astype(np.float64)


def distance(exact: Any, other: Any) -> float:
    """Return |other - exact| / |exact|; infinite where `other` is not finite."""
    error, power = float(np.linalg.norm(other - exact)), float(np.linalg.norm(exact))
    return error / power if np.isfinite(error) and power else float("inf")


def main(folder: Path) -> int:
    """Run both graphs, print how far apart they are, and return the exit code."""
    values, expected = np.load(folder / "input.npz"), np.load(folder / "expected.npz")
    (other_file,) = (file for file in folder.glob("subgraph_*.onnx") if file.name != "subgraph_fp32.onnx")
    exact, other, tolerance = (
        run(folder / "subgraph_fp32.onnx", values),
        run(other_file, values),
        float(expected["tolerance"]),
    )
    name, difference = other_file.stem.removeprefix("subgraph_"), distance(exact, other)
    versions = f"numpy {np.__version__}, Python {platform.python_version()}, {platform.machine()}"
    then = f"it was {float(expected['difference']):.4g} where this folder was written; tolerance {tolerance:g}"
    lines = [
        f"onnxruntime {onnxruntime.__version__}, {versions}",
        f"fp32: {np.array2string(exact.ravel()[:6], precision=4)} ...",
        f"{name}: {np.array2string(other.ravel()[:6], precision=4)} ...",
        f"|{name} - fp32| / |fp32| = {difference:.4g}; {then}",
    ]
    if distance(expected["fp32"].astype(np.float64), exact) > ROUNDING:
        lines.append("note: fp32 itself gives other values here than where this folder was written")
    lines.append("they differ" if difference > tolerance else "they agree within the tolerance here")
    sys.stdout.write("\n".join(lines) + "\n")
    return int(difference > tolerance)


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent))
