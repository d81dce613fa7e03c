"""GPTQ (Frantar et al., arXiv 2210.17323): round weights so that the errors of one channel offset those of others.

The columns of H^-1 give how the other rows of a weight absorb the error of rounding one row (algorithm 1 there).
H = X^T X is of the layer's own int8 inputs, so the rounding of activations is offset too, as far as it can be.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from tasks.calibration.ranges import INT8_MAX
from tasks.calibration.statistics import Calibration
from tasks.graphs.layers import Floats, Linear
from tasks.quantization.qdq import (
    StoredWeight,
    WeightFormat,
    compute_column_scales,
    round_int8_weight,
    store_int8_weight,
)
from tasks.quantization.scales import ActivationScale, fake_quantize

# The share of H's mean diagonal that is added to its diagonal. The paper's 1 % is for 100 times more tokens than
# channels: with 512 tokens it lost on other text what it gained on the sample (docs/measurements/2026-11.md).
DAMPING = 0.1
# Rows whose errors move on together: one matrix product per block (section 3.3 of the paper).
_BLOCK_ROWS = 64
# H takes K² floats and its factorization K³ operations: 64 MB and seconds at this K.
WIDEST = 4096


def round_for_inputs(inputs: Floats, weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Round a weight, float32 [K, N], for `inputs`, float32 [T, K], as the layer will read them.

    Returns the rounded weight, int8 [K, N], and its scales, float32 [N].
    """
    scale = compute_column_scales(weight, INT8_MAX)
    hessian = inputs.T @ inputs
    hessian[np.diag_indices_from(hessian)] += DAMPING * max(float(np.diag(hessian).mean()), 1e-12)
    order = np.argsort(-np.diag(hessian), kind="stable")
    rounded = _round_rows(weight[order], scale, _factor_inverse(hessian[np.ix_(order, order)]))
    in_place = np.empty_like(rounded)
    in_place[order] = rounded
    return in_place.astype(np.int8), scale


def _factor_inverse(hessian: Floats) -> Floats:
    """Return the upper R [K, K] with H^-1 = R^T R, without inverting H: H = U U^T from the bottom right, R = U^-1."""
    lower = scipy.linalg.cholesky(hessian[::-1, ::-1], lower=True, check_finite=False)
    upper: Floats = np.ascontiguousarray(lower[::-1, ::-1])
    inverse: Floats = scipy.linalg.lapack.strtri(upper)[0]
    return inverse


def _round_rows(weight: Floats, scale: Floats, upper: Floats) -> Floats:
    """Round [K, N] row by row; each row's error moves into the rows after it, block by block (section 3.3)."""
    weight, rounded = weight.copy(), np.empty_like(weight)
    for start in range(0, len(weight), _BLOCK_ROWS):
        end = min(start + _BLOCK_ROWS, len(weight))
        errors = np.empty((end - start, weight.shape[1]), dtype=np.float32)
        for row in range(start, end):
            rounded[row] = np.clip(np.rint(weight[row] / scale), -INT8_MAX, INT8_MAX)
            errors[row - start] = (weight[row] - rounded[row] * scale) / upper[row, row]
            weight[row + 1 : end] -= np.outer(upper[row, row + 1 : end], errors[row - start])
        weight[end:] -= upper[start:end, end:].T @ errors
    return rounded


def make_compensating_format(
    linears: Sequence[Linear], scales: Mapping[str, ActivationScale], calibration: Calibration
) -> WeightFormat:
    """Make the weight format that rounds each layer of the fp32 graph for its own sample, once.

    Layers without a sample (Conv), and those wider than WIDEST, are rounded to nearest.
    """
    tensors = {layer.index: layer.input for layer in linears}
    # The autopilot makes several graphs of the same weights.
    rounded: dict[int, tuple[NDArray[np.int8], Floats]] = {}

    def store(layer: Linear, weight: Floats, name: str) -> StoredWeight:
        tensor = tensors[layer.index]
        matrix = layer.to_matrix(weight)
        sample = calibration.activations[tensor].sample
        if not sample.rows or len(matrix) > WIDEST:
            return round_int8_weight(layer, weight, name)
        scale = scales[tensor]
        if layer.index not in rounded:
            inputs = sample.values() if scale.smoothing is None else sample.values() / scale.smoothing
            rounded[layer.index] = round_for_inputs(fake_quantize(inputs, scale.scale), matrix)
        return store_int8_weight(layer, *rounded[layer.index], weight.shape, name)

    return store
