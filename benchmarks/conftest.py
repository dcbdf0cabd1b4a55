"""Options, speech and models that the benchmarks share. One thread, and CPU time instead of the clock on the wall.

CPU time of one thread is what a core is busy for; other programs on the machine do not change it, and on a
quiet machine it is the time on the wall.
"""

from __future__ import annotations

import os

# Before numpy is loaded.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emoinv_edge.audio import read_audio
from emoinv_edge.calibration import Calibration
from emoinv_edge.cli.bench import stand_in_calibration
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.machine import describe_machine
from emoinv_edge.profiles import Profile

from .peers import ROOT, our_models

CLIPS = ROOT / "emoinv_edge" / "demo" / "clips"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emoinv-edge")
    group.addoption(
        "--model", action="append", default=[], metavar="[NAME=]FILE",
        help="an .onnx file to measure instead of the shipped ones; may be repeated",
    )  # fmt: skip
    group.addoption("--fp32", metavar="FILE", help="the fp32 .onnx file that the int8 base was made from")
    group.addoption("--peers", type=Path, metavar="FOLDER", help="the unpacked wheels of the peers")
    group.addoption("--resemblyzer-python", metavar="FILE", help="the python of the environment with Resemblyzer")
    group.addoption("--stream-minutes", type=float, default=5.0, help="length of the stream whose memory is watched")
    group.addoption("--install", action="store_true", help="also time pip install in a fresh environment (network)")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.clear()  # the host's name and the like are nobody's business
    machine_info.update(describe_machine())


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: the full amount, or just enough to see that a benchmark runs."""

    full: bool

    def __call__(self, full: Any, tiny: Any) -> Any:
        return full if self.full else tiny


@pytest.fixture(scope="session")
def sizes(request: pytest.FixtureRequest) -> Sizes:
    """The full amounts, or tiny ones with --benchmark-disable."""
    return Sizes(not request.config.getoption("benchmark_disable"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model_name" in metafunc.fixturenames:
        names = list(our_models(metafunc.config.getoption("--model")))
        if metafunc.config.getoption("--fp32") and "any_precision" in metafunc.fixturenames:
            names.append("fp32")
        metafunc.parametrize("model_name", names or ["base"], scope="session")


@pytest.fixture(scope="session")
def model_path(request: pytest.FixtureRequest, model_name: str) -> str:
    """The path or the shipped name of the model under test."""
    paths = our_models(request.config.getoption("--model"))
    if fp32 := request.config.getoption("--fp32"):
        paths["fp32"] = str(Path(fp32).resolve())
    if model_name not in paths:
        pytest.skip("no model is shipped in this checkout; name one with --model FILE")
    return paths[model_name]


@pytest.fixture(scope="session")
def any_precision() -> None:
    """Asks for the fp32 file among the models."""


@pytest.fixture(scope="session")
def encoder(model_path: str) -> Encoder:
    """The model under test on one thread."""
    return Encoder.open(model_path)


@pytest.fixture(scope="session")
def calibration(encoder: Encoder) -> Calibration:
    """The model's own; for one without, a stand-in that costs the same, since times do not depend on the numbers."""
    return encoder.calibration or stand_in_calibration(encoder.spec.embedding_dim)


@pytest.fixture(scope="session")
def speech() -> Callable[..., NDArray[np.float32]]:
    """A function `speech(seconds, voice="slt", first=0)`: the demo's clips one after another, at 16 kHz."""
    loaded: dict[str, list[NDArray[np.float32]]] = {}

    def make(seconds: float, voice: str = "slt", first: int = 0) -> NDArray[np.float32]:
        if voice not in loaded:
            loaded[voice] = [read_audio(path)[0] for path in sorted((CLIPS / voice).glob("*.ogg"))]
        clips = loaded[voice][first % len(loaded[voice]) :] + loaded[voice][: first % len(loaded[voice])]
        length = round(16000 * seconds)
        return np.resize(np.concatenate(clips), length)

    return make


@pytest.fixture(scope="session")
def profile(encoder: Encoder, calibration: Calibration, speech: Callable[..., NDArray[np.float32]]) -> Profile:
    """The profile of one demo voice."""
    enroller = Enroller(encoder, calibration=calibration)
    for first in (0, 2, 4):
        feedback = enroller.add(speech(4.0, "slt", first), 16000)
        assert feedback.accepted, feedback.message
    return enroller.profile("slt")


@pytest.fixture
def note(benchmark: Any) -> Callable[[float], None]:
    """A function `note(seconds)`: what the measured time is of so much audio, in the benchmark's ``extra_info``."""

    def write(seconds: float) -> None:
        if benchmark.stats:
            factor = benchmark.stats.stats.median / seconds
            benchmark.extra_info.update(audio_s=seconds, rtf=factor, percent_of_one_core=100.0 * factor)

    return write


def cpu_of(call: Callable[[], object], repeats: int) -> float:
    """Median CPU time of a call in seconds, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return float(np.median(times))
