"""GPTQ: weights rounded for their inputs."""

import numpy as np
import pytest

from tasks.quantization.gptq import round_for_inputs
from tasks.quantization.scales import round_per_column


@pytest.mark.parametrize("width", [48, 200])
def test_rounding_for_the_sample_errs_less_on_other_inputs_of_its_kind(width: int) -> None:
    random = np.random.default_rng(0)
    # Channels that move together: what one rounds up, another can round down.
    mixing = random.standard_normal((width // 4, width)).astype(np.float32)
    weight = random.standard_normal((width, 32)).astype(np.float32)

    def draw_inputs(tokens: int) -> np.ndarray:
        mixed = random.standard_normal((tokens, width // 4)) @ mixing + 0.1 * random.standard_normal((tokens, width))
        return mixed.astype(np.float32)

    rounded, scale = round_for_inputs(draw_inputs(512), weight)
    others = draw_inputs(300)

    def error(approximation: np.ndarray) -> float:
        return float(np.square(others @ approximation - others @ weight).sum())

    assert rounded.dtype == np.int8
    assert np.abs(rounded).max() <= 127
    assert error(rounded * scale) < 0.5 * error(round_per_column(weight))


def test_uncorrelated_inputs_give_plain_rounding() -> None:
    weight = np.random.default_rng(1).standard_normal((16, 8)).astype(np.float32)
    rounded, scale = round_for_inputs(np.eye(16, dtype=np.float32), weight)
    np.testing.assert_allclose(rounded * scale, round_per_column(weight), rtol=1e-6)


def test_channels_that_are_always_zero_are_rounded_too() -> None:
    weight = np.ones((4, 2), dtype=np.float32)
    rounded, scale = round_for_inputs(np.zeros((8, 4), dtype=np.float32), weight)
    np.testing.assert_allclose(rounded * scale, weight, rtol=1e-6)
