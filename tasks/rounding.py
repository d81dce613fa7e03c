"""Weights rounded so that the errors of one channel make up for those of others: GPTQ (arXiv 2210.17323).

The columns of H^-1 say how the rest of a weight's rows can absorb the error of rounding one row (algorithm 1 there);
H = X^T X is of the layer's own int8 inputs, so that the rounding of activations is made up for where it can be.
"""

import numpy as np
from numpy.typing import NDArray

from tasks.histogram import Floats
from tasks.ranges import INT8_MAX

# Share of H's mean diagonal that is added to it: 1 % in the paper, for far more tokens than channels.
DAMPING = 0.01
_BLOCK = 64

Doubles = NDArray[np.float64]


def compensated(inputs: Floats, weight: Floats, damping: float = DAMPING) -> tuple[NDArray[np.int8], Floats]:
    """Round a weight [K, N] for `inputs` [T, K] (as the layer will read them): int8 [K, N] and scales [N]."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12).astype(np.float32) / np.float32(INT8_MAX)
    hessian = inputs.T.astype(np.float64) @ inputs
    hessian += np.eye(len(weight)) * (damping * max(float(np.diag(hessian).mean()), 1e-12))
    order = np.argsort(-np.diag(hessian), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    rounded = _round_rows(weight[order].astype(np.float64), scale.astype(np.float64), upper)
    back = np.empty_like(rounded)
    back[order] = rounded
    return back.astype(np.int8), scale


def _round_rows(weight: Doubles, scale: Doubles, upper: Doubles) -> Doubles:
    """Round row by row; each row's error moves into the rows after it, a block at a time (section 3.3)."""
    rounded = np.empty_like(weight)
    for start in range(0, len(weight), _BLOCK):
        end = min(start + _BLOCK, len(weight))
        errors = np.empty((end - start, weight.shape[1]))
        for row in range(start, end):
            rounded[row] = np.clip(np.rint(weight[row] / scale), -INT8_MAX, INT8_MAX)
            errors[row - start] = (weight[row] - rounded[row] * scale) / upper[row, row]
            weight[row + 1 : end] -= np.outer(upper[row, row + 1 : end], errors[row - start])
        weight[end:] -= upper[start:end, end:].T @ errors
    return rounded
