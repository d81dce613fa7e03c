"""Where CUDA does not start, TensorRT returns an empty object, whose first use would end the process."""

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from registry.errors import Incompatible
from tasks.backends.trt.callbacks import process_logger, start
from tasks.backends.trt.session import load_engine


class Logger:
    """The base class that the vendor's module would bring."""

    Severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal", WARNING="warning")


@pytest.fixture
def trt() -> ModuleType:
    """A TensorRT whose CUDA does not start, in the words of 11.4's lean runtime."""
    module: Any = ModuleType("tensorrt")
    module.__version__, module.ILogger = "11.4.0.106", Logger

    class Runtime:
        def __init__(self, logger: Any) -> None:
            logger.log("error", "CUDA initialization failure with error: 35")

        def deserialize_cuda_engine(self, _: bytes) -> None:
            pytest.fail("an empty runtime was used")

    module.Runtime = Runtime
    return module  # type: ignore[no-any-return]


def test_an_engine_is_not_loaded_by_a_runtime_that_did_not_start(trt: ModuleType) -> None:
    with pytest.raises(Incompatible, match=r"11\.4\.0\.106 does not start on this machine: CUDA init.* error: 35"):
        load_engine(trt, b"plan", name="engine.plan")


def test_errors_of_an_earlier_build_do_not_stop_a_start(trt: ModuleType) -> None:
    logger = process_logger(trt)
    logger.log("error", "an earlier build failed")
    assert start(trt, lambda _logger: "a builder", logger) == "a builder"
