"""What holds across the modules: who may import whom, and that every public name is listed and explained."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Imports point one way: a room may import the rooms before it, never those after.
ROOMS = ("emoinv_edge", "train", "export", "benchmarks", "tests")
# What the wheel must never need, though a checkout holds it.
TRAINING_ONLY = ("torch", "scipy", "onnx", "pyworld", "kaldi_native_fbank", "matplotlib", "tensorboard")


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imported(path: Path) -> set[str]:
    """Every top-level package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            # A relative import stays in its room unless it climbs out of it.
            depth = len(path.relative_to(ROOT).parts) - 1
            assert node.level <= depth, f"{path}:{node.lineno} climbs out of its room"
    return names


def is_script(path: Path) -> bool:
    """Whether a file is run, not imported from: `python FILE`, or one command of the command line."""
    return "\nif __name__ ==" in path.read_text("utf-8") or "cli" in path.parts


def modules(scripts: bool = True) -> list[str]:
    names = []
    for path in sources("emoinv_edge"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__" and (scripts or not is_script(path)):
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def public_definitions(module: ast.Module) -> list[tuple[str, ast.AST]]:
    """Public functions and classes of a module, and the public methods of those classes."""
    found = []
    for node in module.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            found.append((node.name, node))
            if isinstance(node, ast.ClassDef):
                found += [
                    (f"{node.name}.{method.name}", method)
                    for method in node.body
                    if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and not method.name.startswith("_")
                ]
    return found


def undocumented(path: Path) -> list[tuple[str, ast.AST]]:
    module = parsed(path)
    definitions = [("module", module), *public_definitions(module)]
    return [(name, node) for name, node in definitions if not ast.get_docstring(node)]


def test_the_rooms_are_there():
    assert {"emoinv_edge.encoder", "emoinv_edge.features", "emoinv_edge"} <= set(modules())
    assert all(sources(room) for room in ("train", "export"))


@pytest.mark.parametrize("room", ["emoinv_edge", "train", "export"])
def test_imports_point_one_way(room):
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    for path in sources(room):
        assert not imported(path) & later, f"{path.relative_to(ROOT)} imports {imported(path) & later}"


def test_the_wheel_names_no_training_package():
    for path in sources("emoinv_edge"):
        found = imported(path) & set(TRAINING_ONLY)
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_the_scan_sees_every_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "emoinv_edge" / "x.py"
    path.parent.mkdir()
    path.write_text(
        "import torch.nn as a\ndef f():\n    from train.model import b\nif 0:\n    import onnx\nfrom . import c\n"
    )
    assert imported(path) == {"torch", "train", "onnx"}
    path = path.with_name("y.py")
    path.write_text("from ..train import model\n")
    with pytest.raises(AssertionError, match="climbs out"):
        imported(path)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runtime_imports_without_torch():
    blocked = (*TRAINING_ONLY, "train", "export", "benchmarks")
    run_python(
        "import sys, importlib\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"  # importing it now raises ImportError
        f"for name in {modules()!r}: importlib.import_module(name)\n"
        "import emoinv_edge\n"
        "for name in emoinv_edge.__all__: getattr(emoinv_edge, name)\n"
    )


def test_importing_the_package_is_light():
    heavy = ("numpy", "onnxruntime", "soundfile", "soxr", "sounddevice", "webrtcvad", "cryptography", "rich")
    loaded = run_python(f"import sys, emoinv_edge\nprint([name for name in {heavy!r} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_scoring_arrays_needs_no_sound_library():
    run_python(
        "import sys\n"
        "for name in ('soundfile', 'soxr', 'sounddevice'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from emoinv_edge import EncoderSpec, log_mel, Encoder\n"
        "from emoinv_edge.audio import ResampleStream, to_mono\n"
        "waveform = to_mono(np.full(16000, 0.5, np.float32), 16000)\n"
        "assert len(ResampleStream(16000, 16000).process(waveform)) == 16000\n"
        "assert log_mel(waveform, EncoderSpec(name='x')).shape == (98, 80)\n"
    )


@pytest.mark.parametrize("name", modules(scripts=False))
def test_exported_members_exist_and_are_sorted(name):
    module = importlib.import_module(name)
    exported = module.__all__

    def rank(member: str) -> tuple[int, str]:  # constants, then classes, then functions, as ruff sorts them
        return (0 if member.isupper() else 1 if member[0].isupper() else 2, member)

    assert list(exported) == sorted(set(exported), key=rank)
    for member in exported:
        assert hasattr(module, member), f"{name}.__all__ names {member}, which is not there"


@pytest.mark.parametrize("name", modules(scripts=False))
def test_every_public_definition_is_exported(name):
    module = importlib.import_module(name)
    defined = {member for member, _ in public_definitions(parsed(Path(module.__file__))) if "." not in member}
    assert defined <= set(module.__all__)


def test_every_public_name_has_a_docstring():
    missing = []
    for path in sources("emoinv_edge"):
        missing += [f"{path.relative_to(ROOT)}: {name}" for name, node in undocumented(path)]
    assert not missing, "\n".join(missing)


def test_every_function_and_class_for_training_and_export_has_a_docstring():
    missing = []
    for path in sources("train") + sources("export"):
        for name, _ in undocumented(path):
            # add_X and run_X are one command each: its help text is the explanation.
            if "." not in name and not name.startswith(("add_", "run_")):
                missing.append(f"{path.relative_to(ROOT)}: {name}")
    assert not missing, "\n".join(missing)


def test_every_error_belongs_to_one_tree():
    errors = importlib.import_module("emoinv_edge.errors")
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.EmoinvError)
        assert name in errors.__doc__


def test_conditions_of_input_are_value_errors_too():
    from emoinv_edge import AudioError, ModelFormatError

    assert issubclass(AudioError, ValueError) and issubclass(ModelFormatError, ValueError)


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "emoinv_edge" / "py.typed").is_file()
