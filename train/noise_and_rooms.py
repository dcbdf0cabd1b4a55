"""Noises and rooms that training speech is sent through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.errors import AudioError

from .prepare import SAMPLE_RATE, decode

__all__ = ["read_noises", "simulate_rooms"]

LONGEST_NOISE_S = 30.0


def read_noises(folders: list[Path]) -> list[NDArray[np.float32]]:
    """Every decodable sound under the folders, at most `LONGEST_NOISE_S` of each; what cannot be read is left out."""
    noises = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in {".wav", ".flac", ".ogg", ".mp3"}:
                continue
            try:
                noises.append(decode(path)[: round(LONGEST_NOISE_S * SAMPLE_RATE)])
            except AudioError:
                continue
    if not noises:
        raise ValueError(f"no sound under {', '.join(map(str, folders))}; give a folder of noise recordings")
    return noises


def simulate_rooms(count: int, seed: int) -> list[NDArray[np.float32]]:
    """Impulse responses of shoebox rooms by the image method (Allen & Berkley 1979), as Kaldi's simulated rooms.

    Sides of 2 to 12 m, 2.2 to 4 m high, reverberation time 0.15 to 0.8 s, speaker and microphone anywhere
    0.3 m or more from a wall.
    """
    import pyroomacoustics

    rng = np.random.default_rng(seed)
    rooms: list[NDArray[np.float32]] = []
    while len(rooms) < count:
        size = np.array([rng.uniform(2, 12), rng.uniform(2, 12), rng.uniform(2.2, 4)])
        try:
            absorption, order = pyroomacoustics.inverse_sabine(rng.uniform(0.15, 0.8), size)
        except ValueError:  # so short a reverberation is impossible in so large a room
            continue
        room = pyroomacoustics.ShoeBox(
            size, fs=SAMPLE_RATE, materials=pyroomacoustics.Material(absorption), max_order=min(order, 12)
        )
        room.add_source(rng.uniform(0.3, size - 0.3))
        room.add_microphone(rng.uniform(0.3, size - 0.3))
        room.compute_rir()
        response = np.asarray(room.rir[0][0], np.float32)[: round(0.8 * SAMPLE_RATE)]
        rooms.append(response / np.abs(response).max())
    return rooms
