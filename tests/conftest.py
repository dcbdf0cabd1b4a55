"""Fixtures that several test files share: synthetic speech and tiny encoders, made here, never fetched."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from tests.builders import TINY_SPEC, build_encoder, synthesise  # noqa: F401
from tests.builders import write_emotional_corpus as write_moody_corpus  # noqa: F401

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
