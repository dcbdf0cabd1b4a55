"""The clips of a prepared set as columns, which its processes share.

A list of as many objects is several times larger, and each worker process soon has a copy of its own, since counting
a reference writes to it.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLUMNS", "SAMPLE_RATE", "Clips", "PreparedClip"]

SAMPLE_RATE = 16000
LABELS = ("corpus", "speaker", "gender", "emotion", "sentence")
COLUMNS = (*LABELS, "start", "samples", "path")


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedClip:
    """One row of a prepared set's manifest.

    ``start`` is the clip's first sample in ``audio.i16``, or its number in the shards.
    """

    corpus: str
    speaker: str
    gender: str
    emotion: str
    sentence: str
    start: int
    samples: int
    path: str

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.samples / SAMPLE_RATE


class Clips(Sequence[PreparedClip]):
    """The rows of a ``manifest.csv``, made into a `PreparedClip` when one is asked for."""

    starts: NDArray[np.int64]
    samples: NDArray[np.int64]

    def __init__(self, table: Path) -> None:
        # Label -> its number, for each column of labels: few speakers say many clips.
        numbers: list[dict[str, int]] = [{} for _ in LABELS]
        codes = [array("i") for _ in LABELS]
        starts, samples, ends, paths = array("q"), array("q"), array("q", [0]), bytearray()
        with open(table, newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if missing := set(COLUMNS) - set(header):
                raise ValueError(f"{table}: expected the columns {', '.join(COLUMNS)}; {sorted(missing)} missing")
            places = [header.index(name) for name in COLUMNS]
            for row in rows:
                *labels, start, length, path = (row[place] for place in places)
                for label, known, code in zip(labels, numbers, codes, strict=True):
                    code.append(known.setdefault(label, len(known)))
                starts.append(int(start))
                samples.append(int(length))
                paths += path.encode()
                ends.append(len(paths))
        self._labels = [list(known) for known in numbers]
        self._codes = [np.frombuffer(code, np.int32) if code else np.empty(0, np.int32) for code in codes]
        self.starts, self.samples = np.array(starts, np.int64), np.array(samples, np.int64)
        self._paths, self._ends = bytes(paths), np.array(ends, np.int64)

    def nameless(self, rows: NDArray[np.bool_]) -> Clips:
        """The same clips, without a speaker in these rows: nobody trains on them by name."""
        speaker = LABELS.index("speaker")
        changed = copy.copy(self)
        changed._labels, changed._codes = list(self._labels), list(self._codes)
        changed._labels[speaker] = [*self._labels[speaker], ""]
        nobody = np.int32(len(self._labels[speaker]))
        changed._codes[speaker] = np.where(rows, nobody, self._codes[speaker])
        return changed

    def without_audio(self, rows: NDArray[np.bool_]) -> Clips:
        """The same clips, of no samples in these rows."""
        changed = copy.copy(self)
        changed.samples = np.where(rows, 0, self.samples)
        return changed

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> PreparedClip: ...

    @overload
    def __getitem__(self, index: slice) -> list[PreparedClip]: ...

    def __getitem__(self, index: int | slice) -> PreparedClip | list[PreparedClip]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # an IndexError beyond the end, and from the end if negative
        corpus, speaker, gender, emotion, sentence = (
            known[code[number]] for known, code in zip(self._labels, self._codes, strict=True)
        )
        path = self._paths[self._ends[number] : self._ends[number + 1]].decode()
        start, samples = int(self.starts[number]), int(self.samples[number])
        return PreparedClip(corpus, speaker, gender, emotion, sentence, start, samples, path)

    def __iter__(self) -> Iterator[PreparedClip]:
        return (self[number] for number in range(len(self)))
