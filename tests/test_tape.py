"""Pieces of recordings are what they are by hand: any place, any speed, repeated where they are too short."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from train import augment
from train.tape import Tape


def rng():
    return np.random.default_rng(3)


@pytest.fixture
def recordings(tmp_path):
    audio = [np.random.default_rng(seed).integers(-32768, 32767, 5000).astype("<i2") for seed in (1, 2)]
    audio[0].tofile(tmp_path / "audio.i16")
    return [np.memmap(tmp_path / "audio.i16", "<i2", "r"), audio[1]]


def test_a_clip_of_just_the_length_comes_whole(recordings):
    pieces = np.array([(0, 100, 700), (1, 4300, 700), (0, 0, 700)])
    found = Tape(recordings).read(pieces, np.ones(3), 700, rng())
    assert found.dtype == torch.float32
    for row, (number, start, samples) in zip(found.numpy(), pieces, strict=True):
        np.testing.assert_array_equal(row, recordings[number][start : start + samples] / np.float32(32768))


def test_a_piece_of_a_longer_clip_lies_within_it_and_its_place_is_random(recordings):
    pieces = np.array([(0, 1000, 300)] * 50)
    found = Tape(recordings).read(pieces, np.ones(50), 120, rng()).numpy()
    clip = recordings[0][1000:1300] / np.float32(32768)
    begins = set()
    for row in found:
        # Between two samples it is the line through them: compare where the piece is nearest.
        best = min(range(180), key=lambda at: np.abs(clip[at : at + 120] - row).max())
        begins.add(best)
        assert row.max() <= clip.max() and row.min() >= clip.min()
    assert len(begins) > 20


def test_a_shorter_clip_is_repeated(recordings):
    found = Tape(recordings).read(np.array([(1, 50, 40)]), np.ones(1), 200, rng())[0]
    torch.testing.assert_close(found[:160], found[40:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("speed", [0.7, 1.0, 1.4])
def test_speed_is_that_of_change_speed(recordings, speed):
    whole = recordings[0][:1000].astype(np.float32) / np.float32(32768)
    expected = augment.change_speed(whole, speed)
    samples = len(expected) - 2

    class Start:  # in place of a generator: the piece begins where the clip does
        def random(self, count):
            return np.zeros(count)

    found = Tape(recordings).read(np.array([(0, 0, 1000)]), np.array([speed]), samples, Start())[0]
    np.testing.assert_allclose(found, expected[:samples], atol=1e-4)


def test_no_pieces_are_no_rows_and_an_empty_clip_is_refused(recordings):
    tape = Tape(recordings)
    assert tape.read(np.empty((0, 3), np.int64), np.empty(0), 10, rng()).shape == (0, 10)
    with pytest.raises(ValueError, match="at least one sample"):
        tape.read(np.array([(0, 5, 0)]), np.ones(1), 10, rng())
