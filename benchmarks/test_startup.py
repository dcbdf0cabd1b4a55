"""What starting, staying and installing cost: imports, first decision, memory, sizes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

import numpy as np
import pytest

from emoinv_edge.encoder import Encoder

from .peers import ROOT

# Loaded when first needed, never by `import emoinv_edge` or by deciding on an array at 16 kHz.
HEAVY = ("cryptography", "numpy", "onnxruntime", "rich", "sounddevice", "soundfile", "soxr", "sqlite3", "webrtcvad")
NOT_FOR_A_DECISION = ("cryptography", "rich", "sounddevice", "soundfile", "soxr", "sqlite3")
IMPORT_BUDGET_S = 0.030  # of CPU time above a bare interpreter
# First decision in a fresh process: 0.6 s, and on a machine where `import numpy, onnxruntime` alone takes more
# than 0.35 s in proportion.
COLD_START_S = 0.6
COLD_START_TARGET = 0.6 / 0.35
LOADED_TARGET_MB = 120.0
SIZE_TARGET_MB = {"base": 8.0, "small": 3.0, "large": 18.0}

NOTHING = "pass"
IMPORT_PACKAGE = "import emoinv_edge"
IMPORT_FLOOR = "import numpy, onnxruntime"
# Enrolment is not part of a first decision: the profile is there. Here it is made of the one embedding.
FIRST_DECISION = """
import datetime, sys
import numpy as np
from emoinv_edge import Encoder, Exemplar, Profile, Verifier
from emoinv_edge.calibration import Calibration, FarTable, Term
from emoinv_edge.quality import SpeechQuality

model, waveform = sys.argv[1], np.load(sys.argv[2])
encoder = Encoder.open(model)
vector = np.eye(encoder.spec.embedding_dim, dtype=np.float32)[0]
now = datetime.datetime.now(datetime.timezone.utc)
profile = Profile(
    "ana", encoder.fingerprint,
    (Exemplar(vector, SpeechQuality(3.0, 25.0, 0.0, -25.0, 4.8, 0.2, -10.0, 0.6), now),), now,
)
calibration = encoder.calibration or Calibration(
    0.0, (Term("cosine", 1.0, -1.0, 1.0),), (FarTable(1, (0.5, 0.001), (0.0, 1.0)),), 3000, "none"
)
verifier = Verifier(encoder, profile, extrapolate=True, calibration=calibration)
decision = verifier.verify(waveform, 16000)
assert decision.score is not None, decision.reason
"""
MEMORY = """
import json, sys
import numpy as np
from emoinv_edge.machine import resident_mb
from emoinv_edge.session import import_onnxruntime
bare = resident_mb()
import_onnxruntime()
imported = resident_mb()
from emoinv_edge.encoder import Encoder
encoder = Encoder.open(sys.argv[1])
loaded = resident_mb()
waveform = np.load(sys.argv[2])
encoder.embed(waveform, 16000)
print(json.dumps({"numpy": bare, "onnxruntime": imported, "loaded": loaded, "embedded": resident_mb()}))
"""


def python(program: str, *arguments: str, flags: tuple[str, ...] = ()) -> tuple[str, str, float]:
    """Run a program in a fresh interpreter; its output, its errors and its CPU time in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *flags, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, done.stderr, used


def in_turns(rounds: int, *runs: tuple[str, ...]) -> list[float]:
    """Median CPU time of each program, all of them started in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for index, run in enumerate(runs):
            times[index].append(python(*run)[2])
    return [float(np.median(each)) for each in times]


@pytest.fixture(scope="session")
def clip(speech, tmp_path_factory) -> str:
    """The path of 3 s of speech as .npy."""
    path = tmp_path_factory.mktemp("clip") / "clip.npy"
    np.save(path, speech(3.0))
    return str(path)


def test_importing_the_package_stays_within_its_budget(benchmark, sizes):
    _, report, _ = python(IMPORT_PACKAGE, flags=("-X", "importtime"))
    loaded = {line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:")}
    assert "emoinv_edge" in loaded
    assert not [name for name in loaded if name.partition(".")[0] in HEAVY]

    def measure() -> float:
        bare, package = in_turns(sizes(9, 1), (NOTHING,), (IMPORT_PACKAGE,))
        return package - bare

    extra = benchmark.pedantic(measure, rounds=1)
    benchmark.extra_info.update(cpu_s=extra, budget_s=IMPORT_BUDGET_S, modules=len(loaded))
    if sizes.full:
        assert extra <= IMPORT_BUDGET_S


def test_a_decision_loads_nothing_that_it_does_not_need(benchmark, model_path, clip):
    _, report, _ = benchmark.pedantic(
        python, (FIRST_DECISION, model_path, clip), {"flags": ("-X", "importtime")}, rounds=1
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in report.splitlines()}
    assert {"numpy", "onnxruntime", "webrtcvad"} <= loaded
    assert not loaded & set(NOT_FOR_A_DECISION)


def test_cold_start(benchmark, model_path, clip, sizes):
    """Fresh process: import, load, first decision; beside what its two largest imports cost alone."""
    rounds = sizes(9, 1)
    floor, decided = benchmark.pedantic(
        in_turns, (rounds, (IMPORT_FLOOR,), (FIRST_DECISION, model_path, clip)), rounds=1
    )
    benchmark.extra_info.update(cpu_s=decided, floor_cpu_s=floor, ratio=decided / floor, target_ratio=COLD_START_TARGET)
    if sizes.full:
        start = time.perf_counter()
        python(FIRST_DECISION, model_path, clip)
        benchmark.extra_info["wall_s"] = time.perf_counter() - start
        allowed = max(COLD_START_S, COLD_START_TARGET * floor)
        assert decided <= allowed, f"{decided:.3f} s of CPU, {floor:.3f} s for its imports alone"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="resident memory is read from /proc")
def test_resident_memory_after_loading(benchmark, model_path, clip):
    out, _, _ = benchmark.pedantic(python, (MEMORY, model_path, clip), rounds=1)
    memory = json.loads(out)
    benchmark.extra_info.update({f"{name}_mb": value for name, value in memory.items()})
    assert memory["loaded"] <= LOADED_TARGET_MB, memory


def test_the_model_file_is_small(benchmark, model_path, model_name, sizes):
    path = Encoder.open(model_path).path
    size = benchmark.pedantic(lambda: path.stat().st_size / 1e6, rounds=1)
    benchmark.extra_info["mb"] = size
    if sizes.full and model_name in SIZE_TARGET_MB:
        assert size <= SIZE_TARGET_MB[model_name]


def test_size_of_the_wheel_and_the_installed_tree(benchmark, tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = benchmark.pedantic(subprocess.run, (command,), {"capture_output": True, "text": True}, rounds=1)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "tree", "zip")
    tree = sum(path.stat().st_size for path in (tmp_path / "tree").rglob("*") if path.is_file())
    benchmark.extra_info.update(wheel_mb=wheel.stat().st_size / 1e6, installed_mb=tree / 1e6)
    assert 0.1e6 < wheel.stat().st_size < 32e6


def test_install_into_a_fresh_environment(benchmark, request, tmp_path):
    if not request.config.getoption("--install"):
        pytest.skip("it needs the network: ask for it with --install")
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", str(ROOT)]
    before = tree_mb(folder)
    done = benchmark.pedantic(subprocess.run, (command,), {"capture_output": True, "text": True}, rounds=1)
    assert done.returncode == 0, done.stderr
    largest = sorted(
        ((tree_mb(path), path.name) for path in (folder / "lib").glob("python*/site-packages/*") if path.is_dir()),
        reverse=True,
    )
    benchmark.extra_info.update(
        total_mb=tree_mb(folder) - before, largest={name: round(size, 1) for size, name in largest[:8]}
    )
    answer = subprocess.run(
        [str(folder / "bin" / "emoinv"), "--version"], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert answer.stdout.startswith("emoinv-edge "), answer.stderr


def tree_mb(folder: Path) -> float:
    """Size of the files under a folder, links not followed."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
    return total / 1e6
