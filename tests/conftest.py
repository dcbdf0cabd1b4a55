"""Fixtures that several test files share: synthetic speech and tiny encoders, made here, never fetched."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Arrays as small as those of the tests gain nothing from threads, which wait for each other for most of their time.
# Before NumPy is imported, which reads them once; the processes that tests start inherit them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest
import soundfile
from hypothesis import settings
from numpy.typing import NDArray

from emoinv_edge.cli import main
from emoinv_edge.encoder import Encoder
from tests.builders import build_encoder, in_file, synthesise
from tests.shell import ANA_HZ, CALIBRATION, Shell

# On a busy machine one example may take any time; what is slow is found by pytest --durations.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A shell that starts us in the background has SIGINT ignored, and every child would inherit that;
# the tests of ctrl-C need it as at a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def speechlike() -> Callable[..., NDArray[np.float32]]:
    """The function `synthesise(seconds, seed, f0_hz=120.0, sample_rate=16000)`."""
    return synthesise


@pytest.fixture
def make_encoder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a tiny encoder and returns its path; arguments as for `build_encoder`."""
    count = 0

    def make(**arguments: Any) -> Path:
        nonlocal count
        count += 1
        return build_encoder(tmp_path / f"encoder-{count}.onnx", **arguments)

    return make


@pytest.fixture(scope="session")
def tiny_encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights, 80 mel bins and 32 dimensions, without calibration."""
    return build_encoder(tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="session")
def tiny_encoder(tiny_encoder_path: Path) -> Encoder:
    """The encoder of `tiny_encoder_path`."""
    return Encoder(tiny_encoder_path)


def write_recording(path: Path, *, seconds: float, seed: int, f0_hz: float, sample_rate: int) -> Path:
    pause = np.zeros(sample_rate // 4, np.float32)
    speech = synthesise(seconds, seed, f0_hz, sample_rate)
    soundfile.write(path, np.concatenate([pause, speech, pause]), sample_rate)
    return path


@pytest.fixture
def recording(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes speech to a WAV file and returns its path."""

    def write(name: str, seconds: float = 3.0, seed: int = 0, f0_hz: float = ANA_HZ, sample_rate: int = 16000) -> Path:
        path = tmp_path / f"{name}.wav"
        return write_recording(path, seconds=seconds, seed=seed, f0_hz=f0_hz, sample_rate=sample_rate)

    return write


@pytest.fixture
def emoinv(make_encoder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """The command with a calibrated tiny model and an empty store."""
    return Shell(make_encoder(metadata=in_file(CALIBRATION)), tmp_path, capsys)


@pytest.fixture(scope="session")
def store_of_ana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in which ana is enrolled, and its key; to be copied."""
    folder = tmp_path_factory.mktemp("ana")
    model = build_encoder(folder / "tiny.onnx", metadata=in_file(CALIBRATION))
    files = [
        write_recording(folder / f"{seed}.wav", seconds=3.0, seed=seed, f0_hz=ANA_HZ, sample_rate=16000)
        for seed in (1, 2, 3)
    ]
    words = ["enroll", "ana", *map(str, files), "--model", str(model), "--store", str(folder / "profiles.db")]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0
    return folder


@pytest.fixture
def with_ana(emoinv: Shell, store_of_ana: Path) -> Shell:
    """The command with ana enrolled."""
    for path in store_of_ana.glob("profiles.db*"):
        shutil.copy2(path, emoinv.folder)
    return emoinv
