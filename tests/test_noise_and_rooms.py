"""Noises from folders, and simulated rooms."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from tests.builders import synthesise
from train.noise_and_rooms import LONGEST_NOISE_S, read_noises, simulate_rooms


def test_noises_are_read_from_folders_and_what_is_no_sound_is_left_out(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.tile(synthesise(1.0, 0), 40), 16000)
    soundfile.write(tmp_path / "short.flac", synthesise(0.5, 1), 16000)
    (tmp_path / "broken.wav").write_text("no sound")
    (tmp_path / "notes.txt").write_text("hello")
    noises = read_noises([tmp_path])
    assert [len(noise) for noise in noises] == [round(16000 * LONGEST_NOISE_S), 8000]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no sound under"):
        read_noises([tmp_path / "empty"])


def test_rooms_are_finite_echoes_that_depend_on_the_seed():
    rooms = simulate_rooms(3, seed=1)
    again = simulate_rooms(3, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(rooms, again, strict=True))
    assert not np.array_equal(rooms[0], simulate_rooms(1, seed=2)[0])
    for room in rooms:
        assert np.isfinite(room).all() and np.abs(room).max() == 1.0 and len(room) <= 0.8 * 16000
        energy = np.cumsum(room[::-1] ** 2)[::-1]
        assert energy[len(room) // 2] < 0.1 * energy[0]  # it dies away
