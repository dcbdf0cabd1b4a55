"""Simulated rooms with a near and a far microphone: what reverberation speech is trained and judged in.

References
----------
Allen and Berkley, "Image method for efficiently simulating small-room acoustics", 1979.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.files import write_atomically

from .prepare import SAMPLE_RATE

__all__ = ["Room", "read_rooms", "simulate_rooms", "write_rooms"]

LONGEST_RESPONSE_S = 1.0  # of a room: below -60 dB by then for RT60 up to 1 s, and the convolution costs by length
# Above this RT60 the last reflections of an exact simulation cost most of its time and lie 40 dB below the first.
EXACT_RT60_S = 0.6

Waveform = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """One place in one simulated room.

    Parameters
    ----------
    near, far : ndarray, shape (taps,), float32
        Impulse responses from one mouth to a microphone at arm's length or closer, and to one across the room.
    rt60_s : float
        Reverberation time that was asked for, s.
    far_m : float
        Distance of the far microphone, m.
    """

    near: Waveform
    far: Waveform
    rt60_s: float
    far_m: float


def simulate_rooms(count: int, seed: int) -> list[Room]:
    """Shoebox rooms by the image-source method, their images slightly displaced (no sweeping echoes).

    Sides of 2.5 to 10 m, 2.3 to 4 m high; RT60 0.2 to 1.0 s; near microphones at 0.15 to 0.6 m, far ones at 1 to 5 m.
    As many orders of reflections are followed as the reverberation time asks for: with a dozen, as is often done, a
    room of 1 s sounds like one of 0.2 s. It takes 0.1 to 3 s a room.

    Parameters
    ----------
    count : int
    seed : int
        Room number i depends on (seed, i) alone.

    Returns
    -------
    list of Room
    """
    return [_simulate_room(np.random.default_rng((seed, number))) for number in range(count)]


def _simulate_room(rng: np.random.Generator) -> Room:
    import pyroomacoustics

    while True:
        size = np.array([rng.uniform(2.5, 10.0), rng.uniform(2.5, 10.0), rng.uniform(2.3, 4.0)])
        rt60 = float(rng.uniform(0.2, 1.0))
        try:
            absorption, order = pyroomacoustics.inverse_sabine(rt60, size)
        except ValueError:  # so short a reverberation is impossible in so large a room
            continue
        mouth = np.array([*rng.uniform(0.4, size[:2] - 0.4), rng.uniform(1.0, 1.8)])
        microphones = []
        for low, high in ((0.15, 0.6), (1.0, 5.0)):
            places = _at_distance(mouth, size, low, high, rng)
            if places is None:
                break
            microphones.append(places)
        if len(microphones) < 2:  # a room too small for the far microphone
            continue
        room = pyroomacoustics.ShoeBox(
            size, fs=SAMPLE_RATE, materials=pyroomacoustics.Material(absorption),
            max_order=order if rt60 <= EXACT_RT60_S else round(order * 0.6), use_rand_ism=True, max_rand_disp=0.05,
        )  # fmt: skip
        room.add_source(mouth)
        room.add_microphone(np.stack(microphones, axis=1))
        _compute_responses(room, int(rng.integers(2**31)))
        longest = round(min(1.2 * rt60, LONGEST_RESPONSE_S) * SAMPLE_RATE)
        near, far = (np.asarray(room.rir[m][0], np.float32)[: longest + 2000] for m in range(2))
        scale = [np.float32(1.0 / np.abs(each).max()) for each in (near, far)]
        return Room(near * scale[0], far * scale[1], rt60, float(np.linalg.norm(microphones[1] - mouth)))


def _compute_responses(room: Any, seed: int) -> None:
    """Compute a room's impulse responses, the displacements of its images drawn from `seed` alone."""
    import pyroomacoustics

    if hasattr(pyroomacoustics, "random"):  # since 0.9 it has a generator of its own
        pyroomacoustics.random.seed(seed)
        room.compute_rir()
        return
    # Before, it drew from numpy's global generator: seeded for a moment, and given back as it was.
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        room.compute_rir()
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _at_distance(
    mouth: NDArray[np.float64], size: NDArray[np.float64], low_m: float, high_m: float, rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """A place so far from the mouth, 5 cm or more from each wall; None if fifty draws find none."""
    for _ in range(50):
        direction = rng.normal(size=3)
        direction[2] *= 0.4  # microphones lie about as high as mouths
        place = mouth + direction / np.linalg.norm(direction) * rng.uniform(low_m, high_m)
        if (place > 0.05).all() and (place < size - 0.05).all():
            return np.asarray(place, np.float64)
    return None


def write_rooms(path: Path, rooms: Sequence[Room]) -> None:
    """Keep simulated rooms as one .npz file, atomically."""
    arrays = {f"{side}{i}": getattr(room, side) for i, room in enumerate(rooms) for side in ("near", "far")}
    facts = np.array([(room.rt60_s, room.far_m) for room in rooms], np.float64).reshape(-1, 2)
    content = io.BytesIO()
    np.savez(content, facts=facts, **arrays)
    write_atomically(path, content.getvalue(), 0o666)


def read_rooms(path: Path) -> list[Room]:
    """Read what `write_rooms` kept."""
    with np.load(path) as saved:
        return [
            Room(saved[f"near{i}"], saved[f"far{i}"], float(rt60), float(far_m))
            for i, (rt60, far_m) in enumerate(saved["facts"])
        ]
