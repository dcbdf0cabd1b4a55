"""Labelled clips: one folder of audio files with a manifest, or one prepared set."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.audio import read_audio

from ..prepare import PreparedSet

__all__ = ["Clip", "EvaluationSet", "Recording", "is_neutral", "open_set", "thin", "thin_set"]


class Clip(Protocol):
    """What evaluation and calibration need to know of a clip; an empty label is an unknown one."""

    @property
    def corpus(self) -> str: ...
    @property
    def speaker(self) -> str: ...
    @property
    def gender(self) -> str: ...
    @property
    def emotion(self) -> str: ...
    @property
    def seconds(self) -> float: ...


def is_neutral(clip: Clip) -> bool:
    """Whether a clip is neutral speech; ordinary speech whose emotion nobody labelled counts as neutral."""
    return clip.emotion in ("neutral", "")


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """One row of an evaluation folder's manifest; `path` is relative to the manifest."""

    path: str
    corpus: str
    speaker: str
    gender: str
    emotion: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Clips with their labels; `waveform` reads one by its index, float32 in [-1, 1] at 16 kHz."""

    name: str
    clips: Sequence[Clip]
    waveform: Callable[[int], NDArray[np.float32]]


def open_set(folder: Path) -> EvaluationSet:
    """An evaluation folder (a manifest of audio files) or a prepared set, which has other columns in its manifest.

    Raises
    ------
    ValueError
        If there is no manifest, it lacks a column, or it lists no clip.
    """
    table = folder / "manifest.csv" if folder.is_dir() else folder
    if not table.is_file():
        raise ValueError(f"{folder}: expected a folder with manifest.csv; see `python -m train prepare --help`")
    name = table.parent.name
    with open(table, newline="", encoding="utf-8") as rows:
        reader = csv.DictReader(rows)
        columns = set(reader.fieldnames or ())
        if {"start", "samples"} <= columns:
            prepared = PreparedSet(table.parent)
            return EvaluationSet(name, prepared.clips, prepared.waveform)
        missing = {"path", "speaker", "emotion"} - columns
        if missing:
            raise ValueError(f"{table}: expected the columns path, speaker and emotion; {sorted(missing)} missing")
        clips = [
            Recording(
                row["path"], name, row["speaker"], row.get("gender") or "", row["emotion"],
                float(row.get("seconds") or 0.0),
            )
            for row in reader
        ]  # fmt: skip
    if not clips:
        raise ValueError(f"{table}: the manifest has a header and no clips")
    return EvaluationSet(name, clips, lambda index: read_audio(table.parent / clips[index].path)[0])


def thin(clips: Sequence[Clip], most: int) -> NDArray[np.int64]:
    """Indices of at most `most` clips, taken evenly from every speaker and emotion in the manifest's order."""
    if len(clips) <= most:
        return np.arange(len(clips))
    cells: dict[tuple[str, str], list[int]] = {}
    for i, clip in enumerate(clips):
        cells.setdefault((clip.speaker, clip.emotion), []).append(i)
    low, high = 1, max(len(indices) for indices in cells.values())
    while low < high:  # the largest number of clips per cell that stays below the limit
        middle = (low + high + 1) // 2
        if sum(min(len(indices), middle) for indices in cells.values()) <= most:
            low = middle
        else:
            high = middle - 1
    kept = [i for indices in cells.values() for i in indices[:low]]
    return np.sort(np.array(kept))[:most]


def thin_set(evaluation: EvaluationSet, most: int) -> EvaluationSet:
    """The set itself, or an even part of it (see `thin`)."""
    kept = thin(evaluation.clips, most)
    if len(kept) == len(evaluation.clips):
        return evaluation
    clips = [evaluation.clips[i] for i in kept]
    return EvaluationSet(evaluation.name, clips, lambda index: evaluation.waveform(int(kept[index])))
