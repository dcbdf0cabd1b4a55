"""Who is trained on and who is judged by: speakers in groups by the hash of their names, whatever else is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from .prepare import PreparedSet

__all__ = ["folds", "split_corpora", "split_speakers"]

TRAIN_SHARE = 0.6  # of the speakers


def split_speakers(speakers: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Training and development speakers, by the hash of their names: the same whatever else is there.

    Raises
    ------
    ValueError
        If fewer than two speakers are left on either side.
    """
    ordered = _by_hash(speakers)
    count = round(TRAIN_SHARE * len(ordered))
    if count < 2 or len(ordered) - count < 2:
        raise ValueError(f"{len(ordered)} speakers cannot be split into two of training and two of development or more")
    return frozenset(ordered[:count]), frozenset(ordered[count:])


def split_corpora(sets: Sequence[PreparedSet]) -> tuple[frozenset[str], frozenset[str]]:
    """Training and development speakers of all sets, each corpus split by itself."""
    names = {clip.speaker for prepared in sets for clip in prepared.clips if clip.speaker}
    corpora = sorted({clip.corpus for prepared in sets for clip in prepared.clips})
    parts = [split_speakers([name for name in names if name.startswith(f"{corpus}-")]) for corpus in corpora]
    training = frozenset(name for train, _ in parts for name in train)
    return training, frozenset(name for _, develop in parts for name in develop)


def folds(sets: Sequence[PreparedSet], count: int) -> list[frozenset[str]]:
    """The speakers of every set in so many groups, each judged by arms that learned from the other groups alone.

    Raises
    ------
    ValueError
        If a corpus has fewer than two speakers for a group.
    """
    groups: list[set[str]] = [set() for _ in range(count)]
    for prepared in sets:
        speakers = {clip.speaker for clip in prepared.clips if clip.speaker}
        if len(speakers) < 2 * count:
            raise ValueError(
                f"{prepared.folder}: {len(speakers)} speakers, expected {2 * count} or more for {count} folds"
            )
        for number, name in enumerate(_by_hash(speakers)):
            groups[number % count].add(name)
    return [frozenset(group) for group in groups]


def _by_hash(speakers: Iterable[str]) -> list[str]:
    return sorted(set(speakers), key=lambda name: hashlib.sha256(name.encode()).digest())
