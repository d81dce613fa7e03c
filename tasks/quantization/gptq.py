"""Weights rounded so that the errors of one channel make up for those of others: GPTQ (arXiv 2210.17323).

The columns of H^-1 say how the rest of a weight's rows can absorb the error of rounding one row (algorithm 1 there);
H = X^T X is of the layer's own int8 inputs, so that the rounding of activations is made up for where it can be.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from tasks.calibration.histogram import Floats
from tasks.calibration.ranges import INT8_MAX
from tasks.calibration.statistics import Calibration
from tasks.graphs.layers import Linear
from tasks.quantization.qdq import StoredWeight, WeightFormat, column_scale, int8_weight, store_int8
from tasks.quantization.scales import ActivationScale, fake_quantize

# Share of H's mean diagonal that is added to it. The paper's 1 % is for 100 times more tokens than channels: with
# 512 tokens it lost on other text what it won on these (docs/measurements/2026-11.md).
DAMPING = 0.1
_BLOCK = 64
# H takes K squared floats and its factor K cubed operations: 64 MB and seconds at this width.
WIDEST = 4096


def compensated(inputs: Floats, weight: Floats, damping: float = DAMPING) -> tuple[NDArray[np.int8], Floats]:
    """Round a weight [K, N] for `inputs` [T, K] (as the layer will read them): int8 [K, N] and scales [N]."""
    scale = column_scale(weight, INT8_MAX)
    hessian = inputs.T @ inputs
    hessian[np.diag_indices_from(hessian)] += damping * max(float(np.diag(hessian).mean()), 1e-12)
    order = np.argsort(-np.diag(hessian), kind="stable")
    rounded = _round_rows(weight[order], scale, _factor_of_inverse(hessian[np.ix_(order, order)]))
    back = np.empty_like(rounded)
    back[order] = rounded
    return back.astype(np.int8), scale


def _factor_of_inverse(hessian: Floats) -> Floats:
    """Upper R with H^-1 = R^T R, without inverting H: H = U U^T from the bottom right, then R = U^-1."""
    lower = scipy.linalg.cholesky(hessian[::-1, ::-1], lower=True, check_finite=False)
    upper: Floats = np.ascontiguousarray(lower[::-1, ::-1])
    inverse: Floats = scipy.linalg.lapack.strtri(upper)[0]
    return inverse


def _round_rows(weight: Floats, scale: Floats, upper: Floats) -> Floats:
    """Round row by row; each row's error moves into the rows after it, a block at a time (section 3.3)."""
    weight, rounded = weight.copy(), np.empty_like(weight)
    for start in range(0, len(weight), _BLOCK):
        end = min(start + _BLOCK, len(weight))
        errors = np.empty((end - start, weight.shape[1]), dtype=np.float32)
        for row in range(start, end):
            rounded[row] = np.clip(np.rint(weight[row] / scale), -INT8_MAX, INT8_MAX)
            errors[row - start] = (weight[row] - rounded[row] * scale) / upper[row, row]
            weight[row + 1 : end] -= np.outer(upper[row, row + 1 : end], errors[row - start])
        weight[end:] -= upper[start:end, end:].T @ errors
    return rounded


def compensating_format(
    linears: Sequence[Linear], scales: Mapping[str, ActivationScale], calibration: Calibration
) -> WeightFormat:
    """Make the weight format that rounds each of `linears` (of the fp32 graph) for its own sample, once.

    Layers without a sample (Conv), or too wide for their H, are rounded to nearest.
    """
    by_index = {each.index: each for each in linears}
    # The autopilot makes several graphs of the same weights.
    known: dict[int, tuple[NDArray[np.int8], Floats]] = {}

    def store(each: Linear, weight: Floats, name: str) -> StoredWeight:
        tensor = by_index[each.index].input
        matrix = each.to_matrix(weight)
        sample = calibration.activations[tensor].sample
        if not sample.rows or len(matrix) > WIDEST:
            return int8_weight(each, weight, name)
        scale = scales[tensor]
        if each.index not in known:
            inputs = sample.values() if scale.smoothing is None else sample.values() / scale.smoothing
            known[each.index] = compensated(fake_quantize(inputs, scale.scale), matrix)
        return store_int8(each, *known[each.index], weight.shape, name)

    return store
