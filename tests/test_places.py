"""Places as containers and services have them: no home, read-only folders, mounted secrets, a zip, a frozen program."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from emoinv_edge.cli import main
from emoinv_edge.encoder import Encoder
from emoinv_edge.errors import EmoinvError, ModelFormatError, ModelMismatchError, StoreError
from emoinv_edge.store import KeyFile, ProfileStore, default_store_path
from emoinv_edge.verifier import Verifier
from tests.builders import ANA_HZ, RATE, calibrated_encoder, calibration, enrolled, synthesise

ROOT = Path(__file__).parents[1]
POSIX = pytest.mark.skipif(os.name != "posix", reason="modes and users of POSIX")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return calibrated_encoder(tmp_path_factory.mktemp("places"))


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No HOME, no XDG_DATA_HOME, and a user that is not in passwd."""
    for name in ("HOME", "XDG_DATA_HOME", "LOCALAPPDATA", "USERPROFILE", "HOMEPATH", "HOMEDRIVE"):
        monkeypatch.delenv(name, raising=False)
    pwd = pytest.importorskip("pwd")

    def nobody(*_: object) -> None:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_the_cure_is_named_and_works(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"--store FILE.*XDG_DATA_HOME"):
        default_store_path()
    recording = tmp_path / "door.wav"
    soundfile.write(recording, synthesise(3.0, 9, ANA_HZ), RATE)
    words = ["verify", "ana", str(recording), "--model", str(encoder.path)]
    assert main(words) == 3
    err = capsys.readouterr().err
    assert "Traceback" not in err and "--store" in err
    assert main(["doctor", "--json"]) == 3
    (store,) = [found for found in json.loads(capsys.readouterr().out)["findings"] if found["name"] == "store"]
    assert "--store" in store["cure"]
    path = tmp_path / "profiles.db"
    ProfileStore(path).put(enrolled(encoder, "ana", ANA_HZ, takes=3))
    assert main([*words, "--store", str(path)]) == 0
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_store_path() == tmp_path / "data" / "emoinv" / "profiles.db"


@pytest.mark.parametrize("command", [["compare", "A", "A"], ["embed", "A", "-o", "OUT"], ["demo"], ["model", "show"]])
@pytest.mark.usefixtures("homeless")
def test_what_needs_no_store_needs_no_home(encoder: Encoder, tmp_path: Path, command: list[str]) -> None:
    recording = tmp_path / "a.wav"
    soundfile.write(recording, synthesise(3.0, 9, ANA_HZ), RATE)
    words = [{"A": str(recording), "OUT": str(tmp_path / "out.npz")}.get(word, word) for word in command]
    if command[0] in ("compare", "embed"):
        words += ["--model", str(encoder.path)]
    elif not (ROOT / "emoinv_edge/models/base.onnx").is_file():
        pytest.skip("this checkout holds no model")
    assert main(words if command[0] != "model" else ["model", "show", str(encoder.path)]) == 0


def test_an_old_sqlite_is_named_with_a_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.34.1")
    assert main(["doctor", "--json", "--store", str(tmp_path / "profiles.db")]) == 3
    (store,) = [found for found in json.loads(capsys.readouterr().out)["findings"] if found["name"] == "store"]
    assert "3.37" in store["value"] and "3.34.1" in store["value"]
    assert "python" in store["cure"].lower() and "report" not in store["cure"]
    assert "3.37" in (ROOT / "README.md").read_text(encoding="utf-8")


@POSIX
@pytest.mark.parametrize("mode", [0o440, 0o444, 0o644])
def test_a_key_of_ones_own_that_others_can_read_names_both_cures_and_both_work(
    encoder: Encoder, tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key = tmp_path / "profiles.db", tmp_path / "key"
    ProfileStore(path, KeyFile(key)).put(enrolled(encoder, "ana", ANA_HZ))
    key.chmod(mode)
    with pytest.raises(StoreError, match=r"chmod 600.*EMOINV_STORE_KEY"):
        ProfileStore(path, KeyFile(key)).names()
    monkeypatch.setenv("EMOINV_STORE_KEY", key.read_text().strip())
    assert ProfileStore(path).names() == ["ana"]
    key.chmod(0o600)
    assert ProfileStore(path, KeyFile(key)).names() == ["ana"]
    assert "EMOINV_STORE_KEY" in (ROOT / "README.md").read_text(encoding="utf-8")


@POSIX
@pytest.mark.parametrize(("mode", "works"), [(0o440, True), (0o444, True), (0o464, False), (0o646, False)])
def test_a_key_whose_mode_nobody_here_can_change_works_unless_others_can_write_it(
    encoder: Encoder, tmp_path: Path, mode: int, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key = tmp_path / "profiles.db", tmp_path / "key"
    ProfileStore(path, KeyFile(key)).put(enrolled(encoder, "ana", ANA_HZ))
    key.chmod(mode)
    mounted = types.SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _: mounted)
    if works:
        assert ProfileStore(path, KeyFile(key)).names() == ["ana"]
    else:
        with pytest.raises(StoreError, match="EMOINV_STORE_KEY") as caught:
            ProfileStore(path, KeyFile(key)).names()
        assert "chmod" not in str(caught.value)


def open_to_others(*places: str) -> bool:
    """Whether another user can read what lies there."""
    return all(above.stat().st_mode & 0o005 == 0o005 for place in places for above in Path(place).resolve().parents)


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(
    not open_to_others(__file__, os.__file__, np.__file__),
    reason="another user cannot read where this Python or the checkout lies",
)
def test_another_user_with_read_only_folders_verifies_and_learns_where_to_write(
    encoder: Encoder, tmp_path: Path
) -> None:
    """As `docker run --user 12345 --read-only`: the store and the home folder belong to somebody else."""
    place = Path("/tmp") / f"emoinv-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        shutil.copy(encoder.path, place / "model.onnx")
        soundfile.write(place / "door.wav", synthesise(3.0, 9, ANA_HZ), RATE)
        ProfileStore(place / "profiles.db").put(enrolled(encoder, "ana", ANA_HZ, takes=3))
        key = (place / "profiles.db.key").read_text().strip()
        for file in place.iterdir():
            file.chmod(0o444)
        code = (
            "import os, sys; from emoinv_edge.cli import main; import numpy, rich.console, soundfile, sqlite3\n"
            "from emoinv_edge.session import import_onnxruntime; import_onnxruntime()\n"
            "import emoinv_edge.verifier, emoinv_edge.device_calibration, webrtcvad\n"
            "import cryptography.hazmat.bindings._rust\n"
            "import cryptography.hazmat.primitives.ciphers.aead, cryptography.hazmat.primitives.kdf.hkdf\n"
            "import emoinv_edge.store, emoinv_edge.adaptation, emoinv_edge.enrolment, emoinv_edge.prompts\n"
            "emoinv_edge.prompts.read_prompts('en')\n"
            "os.setgid(12345); os.setuid(12345); sys.exit(main(sys.argv[1:]))"
        )
        environment = {"PATH": os.environ["PATH"], "HOME": str(place), "PYTHONPATH": os.pathsep.join(sys.path)}

        def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", code, *words, "--model", str(place / "model.onnx")]
            return subprocess.run(
                command, env=environment | variables, capture_output=True, text=True, cwd="/", check=False
            )

        verified = run("verify", "ana", str(place / "door.wav"), "--store", str(place / "profiles.db"),
                       EMOINV_STORE_KEY=key)  # fmt: skip
        assert verified.returncode == 0, verified.stderr
        assert "audit trail" in verified.stderr and "Traceback" not in verified.stderr
        enrolled_there = run("enroll", "bob", str(place / "door.wav"))
        assert enrolled_there.returncode == 3 and "Traceback" not in enrolled_there.stderr
        assert "--store" in enrolled_there.stderr or "XDG_DATA_HOME" in enrolled_there.stderr
    finally:
        shutil.rmtree(place)


def test_an_encoder_is_pickled_as_its_file_and_a_changed_file_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    shutil.copy(encoder.path, path)
    pickled = pickle.dumps(Encoder(path, num_threads=2))
    assert len(pickled) < 1000
    assert pickle.loads(pickled).fingerprint == encoder.fingerprint
    (tmp_path / "other").mkdir()
    shutil.copy(calibrated_encoder(tmp_path / "other", calibration(bias=-6.0)).path, path)
    with pytest.raises(ModelMismatchError, match="one version of the model"):
        pickle.loads(pickled)
    path.unlink()
    with pytest.raises(ModelFormatError, match="no such model file"):
        pickle.loads(pickled)


def _score(verifier: Verifier) -> float | None:
    return verifier.verify(synthesise(3.0, 9, ANA_HZ), RATE).score


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_verifier_decides_the_same_in_another_process(encoder: Encoder, method: str) -> None:
    try:
        context = get_context(method)
    except ValueError:
        pytest.skip(f"this system has no {method}")
    verifier = Verifier(encoder, enrolled(encoder, "ana", ANA_HZ), 0.01)
    with context.Pool(1) as pool:
        assert pool.apply(_score, (verifier,)) == _score(verifier)


@POSIX
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of threads and fork: what is tried here
@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_encoder_works_on_in_the_child_of_a_fork(encoder: Encoder, num_threads: int) -> None:
    shared = Encoder(encoder.path, num_threads)
    expected = shared.embed(synthesise(3.0, 9, ANA_HZ), RATE).vector.tobytes()
    for _ in range(2):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            same = [shared.embed(synthesise(3.0, 9, ANA_HZ), RATE).vector.tobytes() == expected for _ in range(2)]
            os._exit(0 if all(same) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shared.embed(synthesise(3.0, 9, ANA_HZ), RATE).vector.tobytes() == expected


def test_a_verifier_that_watches_a_store_is_not_pickled_since_that_holds_a_key(
    encoder: Encoder, tmp_path: Path
) -> None:
    store = ProfileStore(tmp_path / "profiles.db")
    store.put(enrolled(encoder, "ana", ANA_HZ))
    with pytest.raises(TypeError, match="open it anew"):
        pickle.dumps(Verifier(encoder, store, 0.01))
    assert pickle.loads(pickle.dumps(Verifier(encoder, store.get("ana"), 0.01))).speakers == ("ana",)


@pytest.mark.slow
def test_the_library_runs_from_a_zip(tmp_path: Path) -> None:
    if not (ROOT / "emoinv_edge/models/base.onnx").is_file():
        pytest.skip("this checkout holds no model")
    archive = tmp_path / "library.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((ROOT / "emoinv_edge").rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                file.write(path, path.relative_to(ROOT))
    packages = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(archive), *packages]),
    }

    def emoinv(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "emoinv_edge", *words] if sys.version_info >= (3, 11) else [
            sys.executable, "-m", "emoinv_edge", *words
        ]  # fmt: skip
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    doctor = emoinv("doctor", "--json")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    findings = {found["name"]: found for found in json.loads(doctor.stdout)["findings"]}
    assert str(archive) in findings["emoinv-edge"]["value"]
    assert findings["model base"]["status"] == "ok"
    demo = emoinv("demo", "--json")
    assert demo.returncode == 0, demo.stderr
    assert json.loads(demo.stdout)["wrong"] == 0


@pytest.fixture
def pyinstaller(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[str]]]:
    """A stand-in for PyInstaller's helpers, which notes what a hook asks them for."""
    asked: dict[str, list[str]] = {"metadata": [], "data": [], "modules": []}

    def copy_metadata(distribution: str) -> list[tuple[str, str]]:
        importlib.metadata.distribution(distribution)  # raises where it is not installed, as PyInstaller's does
        asked["metadata"].append(distribution)
        return [(distribution, distribution)]

    def collect(kind: str, found: list[Any]) -> Callable[..., list[Any]]:
        def helper(package: str, **_: object) -> list[Any]:
            asked[kind].append(package)
            return found

        return helper

    hooks = types.ModuleType("PyInstaller.utils.hooks")
    modules = ["emoinv_edge.encoder", "emoinv_edge._pyinstaller", "emoinv_edge.cli.verify"]
    for name, helper in (
        ("copy_metadata", copy_metadata),
        ("collect_data_files", collect("data", [("models", "models")])),
        ("collect_submodules", collect("modules", modules)),
    ):
        setattr(hooks, name, helper)
    for name, module in (
        ("PyInstaller", types.ModuleType("PyInstaller")),
        ("PyInstaller.utils", types.ModuleType("PyInstaller.utils")),
        ("PyInstaller.utils.hooks", hooks),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    yield asked


def test_pyinstaller_finds_the_hooks_by_their_entry_point(pyinstaller: dict[str, list[str]]) -> None:
    points = importlib.metadata.entry_points(group="pyinstaller40")
    ours = [point for point in points if point.value.startswith("emoinv_edge.")]
    if not ours:
        pytest.skip("this installation is older than its checkout; install it again")
    (folder,) = ours[0].load()()
    names = sorted(path.name for path in Path(folder).glob("hook-*.py"))
    assert names == ["hook-emoinv_edge.py", "hook-webrtcvad.py"]
    for name in names:
        namespace: dict[str, Any] = {}
        exec((Path(folder) / name).read_text(encoding="utf-8"), namespace)
        assert namespace["datas"]
        if name == "hook-emoinv_edge.py":
            assert namespace["hiddenimports"] == ["emoinv_edge.encoder", "emoinv_edge.cli.verify"]
    assert {"emoinv-edge", "onnxruntime", "webrtcvad-wheels"} <= set(pyinstaller["metadata"])
    assert pyinstaller["data"] == ["emoinv_edge"]


def test_running_out_of_memory_is_called_that_without_a_traceback(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = tmp_path / "a.wav"
    soundfile.write(recording, synthesise(3.0, 9, ANA_HZ), RATE)

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "concatenate", no_memory)
    assert main(["compare", str(recording), str(recording), "--model", str(encoder.path)]) == 3
    err = capsys.readouterr().err
    assert "out of memory" in err and "Traceback" not in err


def test_every_condition_has_one_base() -> None:
    assert issubclass(StoreError, EmoinvError)
