"""Guards for the tiny encoders of `tests.builders`, with plain numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import Term
from emoinv_edge.guards import Guards
from emoinv_edge.speakers import ClipsTest, WindowsTest
from emoinv_edge.voice import VoiceTest

DIM = 32
# Two windows a second apart do not overlap; of sides of four windows and more a cosine below 0.5 is two voices.
WINDOWS = WindowsTest(window_s=1.0, hop_s=0.5, bias=4.0, cosine=-10.0, lesser=1.0, length=0.0)
# A cosine of 0.7 is an LLR of 0; below -1 a clip is doubted.
CLIPS = ClipsTest(bias=-7.0, terms=(Term("cosine", 10.0, -1.0, 1.0),), coherence=0.8, least=-1.0)


def anybody() -> VoiceTest:
    """A test that takes everything for a voice."""
    return VoiceTest(np.zeros(DIM, "<f4").tobytes(), (), 1.0)


def voice_along(direction: NDArray[Any], bias: float = 0.0, terms: tuple[Term, ...] = ()) -> VoiceTest:
    """Whatever lies along `direction` is a voice."""
    return VoiceTest(np.asarray(direction, "<f4").tobytes(), terms, bias)


def guards(**changes: Any) -> Guards:
    """Guards that let everything pass that is of one voice."""
    values: dict[str, Any] = {
        "voice": anybody(),
        "windows": WINDOWS,
        "door": None,
        "clips": CLIPS,
        "least_cosine": -1.0,
        "cosine_weight": 0.0,
    }
    values["least_sum"] = -1e6

    return Guards(**(values | {"source": "invented for the tests"} | changes))


def guards_in_file(held: Guards) -> dict[str, Any]:
    """The guards as `build_encoder` takes them among its metadata."""
    return {"emoinv.guards": json.loads(held.to_json())}
