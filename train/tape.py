"""Prepared speech as it lies on disk, read in pieces: any clips, many at once, each at its own speed.

The audio of a prepared set stays mapped, not loaded; on a GPU it is copied there once (115 MB an hour).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Pieces", "Tape"]

Recording = NDArray[np.int16] | Callable[[int, int], NDArray[np.int16]]

# Where clips lie: shape (clips, 3), the number of their recording, their start and their samples.
Pieces = NDArray[np.int64]


class Tape:
    """Recordings of int16 samples, read as float32 in [-1, 1].

    Parameters
    ----------
    recordings : sequence of ndarray, int16, or callable
        Memory maps of ``audio.i16``; or what gives the samples of a clip by its start and length, as `shards.Shards`
        does, which stay on disk whatever the device.
    """

    def __init__(self, recordings: Sequence[Recording], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._recordings = [each if callable(each) else _tensor(each).to(self.device) for each in recordings]

    def read(self, pieces: Pieces, speeds: NDArray[np.float64], samples: int, rng: np.random.Generator) -> Tensor:
        """A random stretch of each clip, shape (clips, samples); a shorter clip is repeated from a random phase.

        Parameters
        ----------
        speeds : ndarray, shape (clips,)
            Above 1 a clip is played faster, by linear interpolation, as `augment.change_speed` does.
        """
        lengths = pieces[:, 2]
        if (lengths < 1).any():
            raise ValueError("expected clips of at least one sample")
        needed = samples * speeds
        span = np.where(lengths >= needed, lengths - needed, lengths)
        begins = self._tensor(rng.random(len(pieces)) * span)[:, None]
        strides = self._tensor(speeds)[:, None]
        steps = torch.arange(samples, device=self.device, dtype=torch.float64)
        out = torch.empty((len(pieces), samples), device=self.device)
        for number in np.unique(pieces[:, 0]):
            rows = np.flatnonzero(pieces[:, 0] == number)
            recording, starts = self._recordings[number], pieces[rows, 1]
            if not isinstance(recording, Tensor):  # its clips one after the other
                clips = [recording(int(start), int(length)) for _, start, length in pieces[rows]]
                recording = torch.from_numpy(np.concatenate(clips)).to(self.device)
                starts = np.cumsum(pieces[rows, 2]) - pieces[rows, 2]
            start, length = (self._tensor(values)[:, None] for values in (starts, pieces[rows, 2]))
            positions = begins[rows] + steps * strides[rows]
            before = positions.floor()
            share = (positions - before).float()
            before = before.long()
            first = recording[start + before % length].float()
            second = recording[start + (before + 1) % length].float()
            out[rows] = (first + (second - first) * share) / 32768.0
        return out

    def _tensor(self, values: NDArray[np.float64] | NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def _tensor(recording: NDArray[np.int16]) -> Tensor:
    """A view of the samples; torch warns of memory that may not be written, and nothing here writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(recording)
