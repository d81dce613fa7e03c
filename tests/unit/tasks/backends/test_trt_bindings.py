"""Every name that our code uses of `tensorrt` exists in TensorRT 11.4, whose libraries do not install here.

Its Python bindings do: they need a handful of C symbols, which empty stub libraries give them. So they
import, and their classes can be looked at. Nothing of TensorRT runs.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
SOURCES = sorted((ROOT / "tasks/backends/trt").glob("*.py"))
# Our code's names for TensorRT's objects; a class of ours that derives from one is held to it too.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "cache": "ITimingCache",
}
RTX_ONLY_GUARD = "hasattr"
STUBS = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
# Prints those of the dotted names on stdin that the module argv[1] lacks.
LOOK = """
import functools, importlib, json, sys
module = importlib.import_module(sys.argv[1])
def has(dotted):
    try:
        functools.reduce(getattr, dotted.split("."), module)
    except AttributeError:
        return False
    return True
print(json.dumps([name for name in json.load(sys.stdin) if not has(name)]))
"""


def used_names(*, rtx_only: bool) -> set[str]:
    """Dotted names below the vendor's module that our sources use, in or outside of `if hasattr(…)`."""
    used: set[str] = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        guarded = {id(node) for branch in _guarded(tree) for node in ast.walk(branch)}
        used |= {
            name
            for node in ast.walk(tree)
            if (id(node) in guarded) is rtx_only
            for name in (*_attribute(node), *_overrides(node))
        }
    return used


def _guarded(tree: ast.AST) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith(RTX_ONLY_GUARD):
            yield from node.body


def _attribute(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute) and "(" not in ast.unparse(node):
        base, *rest = ast.unparse(node).removeprefix("self._").split(".")
        if base == "trt" and rest[-1] != "__name__":
            yield ".".join(rest)
        elif base in CLASSES and rest:
            yield f"{CLASSES[base]}.{rest[0]}"


def _overrides(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        for base in (ast.unparse(base) for base in node.bases):
            if base.startswith("trt."):
                own = {"take_errors", "_report"}
                methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
                yield from (f"{base.removeprefix('trt.')}.{name}" for name in methods - own)


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries: install gcc")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text("".join(f"void {symbol}(void) {{}}\n" for symbol in SYMBOLS))
    for name in STUBS:
        subprocess.run(
            [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", name, "stub.c"],
            cwd=folder,
            check=True,
        )
    return folder


def missing(module: str, names: set[str], libraries: Path | None = None) -> list[str]:
    environment = {**os.environ, **({"LD_LIBRARY_PATH": str(libraries)} if libraries else {})}
    lookup = subprocess.run(
        [sys.executable, "-c", LOOK, module],
        input=json.dumps(sorted(names)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert lookup.returncode == 0, lookup.stderr
    missing_names: list[str] = json.loads(lookup.stdout)
    return missing_names


def test_names_are_found_in_the_sources() -> None:
    assert {"Builder", "IBuilderConfig.progress_monitor", "MemoryPoolType.WORKSPACE"} <= used_names(rtx_only=False)
    assert {"ICudaEngine.get_tensor_name", "IExecutionContext.execute_async_v3"} <= used_names(rtx_only=False)
    assert {"IProgressMonitor.step_complete", "ILogger.log"} <= used_names(rtx_only=False)
    assert used_names(rtx_only=True) >= {"IBuilderConfig.set_compute_capability", "ComputeCapability"}
    classes = {name.split(".")[0] for name in used_names(rtx_only=False)}
    assert set(CLASSES.values()) - classes == set(), "a class that no source uses any more"


def test_every_name_exists_in_tensorrt_11_4(stubs: Path) -> None:
    try:
        installed = version("tensorrt-cu13-bindings")
    except PackageNotFoundError:
        pytest.skip("no tensorrt bindings: pip install --no-deps tensorrt-cu13-bindings==11.4.0.106")
    assert installed.startswith("11.4."), f"tensorrt-cu13-bindings is {installed}; this looks at 11.4"
    assert missing("tensorrt_bindings", used_names(rtx_only=False), stubs) == []


def test_every_name_exists_in_tensorrt_rtx() -> None:
    if not find_spec("tensorrt_rtx"):
        pytest.skip("tensorrt-rtx is not installed: pip install -e .[trt-rtx]")
    assert missing("tensorrt_rtx", used_names(rtx_only=False) | used_names(rtx_only=True)) == []


def test_a_name_that_does_not_exist_is_reported(stubs: Path) -> None:
    if not find_spec("tensorrt_bindings"):
        pytest.skip("no tensorrt bindings: pip install --no-deps tensorrt-cu13-bindings==11.4.0.106")
    removed = {"BuilderFlag.INT8", "IInt8Calibrator", "Builder"}  # TensorRT 10 had all of them
    assert missing("tensorrt_bindings", removed, stubs) == ["BuilderFlag.INT8", "IInt8Calibrator"]
