"""Are a corpus's labels true? Ids that are one person, ids that hold several, and copies of one recording.

Ids made of hashes, uploads or sessions are no people. Two encoders that have no part in the training embed a few
clips of each id; what both find is reported, what one finds is noted:

- **One person under two ids**: the mean embeddings of two ids are alike beyond the corpus's own impostors (of one
  gender, where it is known), and as alike as two halves of one id are.
- **Another person's clip**: as far from the rest of its id as an impostor's, and at one other id's place. A clip that
  is far from everybody is hard speech, not a wrong label, and stays: dropping it would only flatter the error rates.
- **Several people under one id**: half of its clips and more are as far from the rest as an impostor's.
- **Copies**: clips with equal samples, or with equal length and one level contour.

A corpus's own impostors are its pairs of ids; their middle is described by median and median absolute deviation, which
a few true pairs among thousands do not move. The result is a table, and corrections as data: ids and numbers only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.files import write_atomically

from .evaluation.embeddings import unit
from .evaluation.metrics import eer
from .prepare import SAMPLE_RATE, PreparedClip, PreparedSet, by_speaker

__all__ = [
    "Audit",
    "Corrections",
    "apply_corrections",
    "audit",
    "audit_embeddings",
    "correct_labels",
    "find_copies",
    "format_audits",
    "read_corrections",
    "write_corrections",
]

CLIPS_PER_ID = 6
LONGEST_S = 4.0
# A pair of ids is beyond the impostors where fewer than this many of all pairs of the corpus would be by chance.
EXPECTED_FALSE_PAIRS = 0.02
FEWEST_SIGMAS = 4.0
# As alike as two halves of one id: above this quantile of the corpus's own halves.
ALIKE_QUANTILE = 0.2
# A clip is as far from its id as an impostor: below this many deviations above the impostors' median.
FAR_SIGMAS = 1.0
# And it is at another's place: above this quantile of the clips' cosines to the rest of their own ids.
PLACE_QUANTILE = 0.2
FEWEST_CLIPS = 4  # of an id that can be taken for several people
FEWEST_IDS = 6  # fewer give no distribution of impostors
FRAME = SAMPLE_RATE // 100
SAME_CONTOUR = 0.9995  # correlation of two copies' levels in dB, 10 ms apart

Embed = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, slots=True)
class Corrections:
    """What is to be changed in one corpus.

    Parameters
    ----------
    merge : tuple of tuple of str
        Ids that are one person; the first of each is kept.
    drop_ids : tuple of str
        Ids that hold several people: their clips have no speaker.
    drop_clips : tuple of int
        Numbers, in the manifest, of clips that are not their id's, and of copies.
    unknown_pairs : tuple of (str, str)
        Pairs of ids that one encoder takes for one person and the other does not: no trials should be made of them.
    """

    merge: tuple[tuple[str, ...], ...] = ()
    drop_ids: tuple[str, ...] = ()
    drop_clips: tuple[int, ...] = ()
    unknown_pairs: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Audit:
    """What was found in one corpus.

    Parameters
    ----------
    corpus : str
    ids, clips : int
        Those that it names, and its clips.
    corrections : Corrections
    copies : tuple of (int, int)
        Numbers of clips that are one recording.
    eer_before, eer_after : dict of str to float
        Of each encoder, all pairs of the embedded clips, in percent: by the labels as they are, and corrected.
        Empty where there are too few ids.
    """

    corpus: str
    ids: int
    clips: int
    corrections: Corrections
    copies: tuple[tuple[int, int], ...]
    eer_before: dict[str, float]
    eer_after: dict[str, float]


def audit(
    sets: Sequence[PreparedSet],
    encoders: Mapping[str, Embed],
    clips_per_id: int = CLIPS_PER_ID,
    progress: Callable[[str, int, int], None] = lambda corpus, done, total: None,
) -> list[Audit]:
    """Audit prepared sets by what two encoders say of a few clips of each id.

    Parameters
    ----------
    sets : sequence of PreparedSet
        One corpus each.
    encoders : mapping of str to callable
        Waveforms -> embeddings (clips, dim), e.g. `teacher.Teacher.embed`; two of them.
    clips_per_id : int
        At most so many are embedded, evenly spread over the id's.
    progress : callable
        Called with the corpus, the clips embedded so far by all encoders, and how many there will be.

    Returns
    -------
    list of Audit

    Raises
    ------
    ValueError
        If there are not two encoders or more.
    """
    if len(encoders) < 2:
        raise ValueError(f"expected two encoders or more, got {len(encoders)}: one alone errs where nobody notices")
    found = []
    for prepared in sets:
        chosen = [index for indices in by_speaker(prepared.clips).values() for index in _spread(indices, clips_per_id)]
        corpus, longest = prepared.folder.name, round(LONGEST_S * SAMPLE_RATE)
        embeddings: dict[str, NDArray[np.float32]] = {}
        for number, (name, embed) in enumerate(encoders.items()):
            rows = []
            for done, index in enumerate(chosen, 1):
                rows.append(embed([prepared.waveform(index)[:longest]])[0])
                progress(corpus, number * len(chosen) + done, len(encoders) * len(chosen))
            embeddings[name] = np.asarray(rows, np.float32).reshape(len(chosen), -1)
        copies = find_copies(prepared)
        speakers = [prepared.clips[index].speaker for index in chosen]
        genders = {clip.speaker: clip.gender for clip in prepared.clips}
        found.append(audit_embeddings(corpus, len(prepared.clips), chosen, speakers, embeddings, copies, genders))
    return found


def _spread(indices: Sequence[int], most: int) -> list[int]:
    if len(indices) <= most:
        return list(indices)
    return [indices[int(i)] for i in np.linspace(0, len(indices) - 1, most)]


def audit_embeddings(
    corpus: str,
    clips: int,
    numbers: Sequence[int],
    speakers: Sequence[str],
    embeddings: Mapping[str, NDArray[np.float32]],
    copies: Sequence[tuple[int, int]] = (),
    genders: Mapping[str, str] | None = None,
) -> Audit:
    """Audit one corpus by embeddings that are there already.

    Parameters
    ----------
    corpus : str
    clips : int
        How many it has in all.
    numbers : sequence of int
        Which of them were embedded.
    speakers : sequence of str
        The id of each of these.
    embeddings : mapping of str to ndarray, shape (embedded clips, dim)
        Of each encoder; scaled to unit norm here.
    copies : sequence of (int, int)
        From `find_copies`; the later clip of each is dropped.
    genders : mapping of str to str, optional
        Of the ids; those of two known genders are never one person, and no impostors of each other.

    Returns
    -------
    Audit
        Without merges and drops of voices where there are fewer than `FEWEST_IDS` ids.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, speaker in enumerate(speakers):
        rows_of[speaker].append(row)
    ids = sorted(rows_of)
    copied = {later for _, later in copies}
    if len(ids) < FEWEST_IDS:
        fixed = Corrections(drop_clips=tuple(sorted(copied)))
        return Audit(corpus, len(ids), clips, fixed, tuple(copies), {}, {})
    vectors = {name: unit(values) for name, values in embeddings.items()}
    seen = [_strangers(each, ids, rows_of) for each in vectors.values()]
    far = np.logical_and.reduce([each for each, _ in seen])
    mixed = tuple(id for id in ids if len(rows_of[id]) >= FEWEST_CLIPS and far[rows_of[id]].mean() >= 0.5)
    elsewhere = np.stack([place for _, place in seen])
    wrong = far & (elsewhere[0] >= 0) & (elsewhere == elsewhere[0]).all(axis=0)
    strays = {numbers[row] for row in np.flatnonzero(wrong).tolist() if speakers[row] not in mixed}
    sound = [id for id in ids if id not in mixed]
    kept = {id: [row for row in rows_of[id] if not wrong[row]] for id in sound}
    sure, unknown = _same_person(vectors, sound, kept, genders or {})
    merges, chained = _groups(sure)
    fixed = Corrections(
        merges, mixed, tuple(sorted(copied | strays)),
        tuple(sorted({*unknown, *chained})),
    )  # fmt: skip
    renamed = _renamed(list(zip(numbers, speakers, strict=True)), fixed)
    return Audit(
        corpus, len(ids), clips, fixed, tuple(copies),
        {name: _eer(each, speakers, ()) for name, each in vectors.items()},
        {name: _eer(each, renamed, fixed.unknown_pairs) for name, each in vectors.items()},
    )  # fmt: skip


def _means(vectors: NDArray[np.float32], groups: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    return unit(np.stack([vectors[list(rows)].mean(axis=0) for rows in groups]))


def _centre_and_spread(values: NDArray[np.floating]) -> tuple[float, float]:
    """Median, and the deviation that a normal distribution of that median absolute deviation has."""
    centre = float(np.median(values))
    return centre, 1.4826 * float(np.median(np.abs(values - centre))) + 1e-9


def _strangers(
    vectors: NDArray[np.float32], ids: Sequence[str], rows_of: Mapping[str, Sequence[int]]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which clips are as far from the rest of their id as an impostor's; at which other id's place each is, or -1."""
    cosines = vectors @ _means(vectors, [rows_of[id] for id in ids]).T
    to_own = np.full(len(vectors), np.nan)
    for number, id in enumerate(ids):
        rows = list(rows_of[id])
        cosines[rows, number] = np.nan
        for row in rows if len(rows) >= 3 else ():  # two that differ do not show which of them is wrong
            rest = _means(vectors, [[other for other in rows if other != row]])[0]
            to_own[row] = vectors[row] @ rest
    known = np.isfinite(to_own)
    if not known.any():
        return np.zeros(len(vectors), bool), np.full(len(vectors), -1)
    centre, spread = _centre_and_spread(cosines[np.isfinite(cosines)])
    far = known & (to_own < centre + FAR_SIGMAS * spread)
    at_home = float(np.quantile(to_own[known], PLACE_QUANTILE))
    nearest = np.nanargmax(cosines, axis=1)
    return far, np.where(np.nanmax(cosines, axis=1) >= at_home, nearest, -1)


def _same_person(
    vectors: Mapping[str, NDArray[np.float32]],
    ids: Sequence[str],
    rows_of: Mapping[str, Sequence[int]],
    genders: Mapping[str, str],
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of ids that all encoders take for one person, and pairs that only some do."""
    _, gender = np.unique([genders.get(id, "") for id in ids], return_inverse=True)
    unknown = np.array([not genders.get(id, "") for id in ids])
    left, right = np.triu_indices(len(ids), 1)
    possible = (gender[left] == gender[right]) | unknown[left] | unknown[right]
    left, right = left[possible], right[possible]
    votes = np.zeros(len(left), np.int64)
    if not len(left):
        return [], []
    for each in vectors.values():
        means = _means(each, [rows_of[id] for id in ids])
        cosine = (means @ means.T)[left, right]
        centre, spread = _centre_and_spread(cosine)
        sigmas = max(FEWEST_SIGMAS, NormalDist().inv_cdf(1.0 - min(0.5, EXPECTED_FALSE_PAIRS / len(cosine))))
        halves = [
            float(np.prod(_means(each, [rows_of[id][::2], rows_of[id][1::2]]), axis=0).sum())
            for id in ids
            if len(rows_of[id]) >= 2
        ]
        alike = float(np.quantile(halves, ALIKE_QUANTILE)) if halves else math.inf
        votes += (cosine >= centre + sigmas * spread) & (cosine >= alike)
    pairs = [(ids[i], ids[j]) for i, j in zip(left.tolist(), right.tolist(), strict=True)]
    sure = [pairs[i] for i in np.flatnonzero(votes == len(vectors)).tolist()]
    return sure, [pairs[i] for i in np.flatnonzero((votes > 0) & (votes < len(vectors))).tolist()]


def _groups(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[tuple[str, ...], ...], list[tuple[str, str]]]:
    """Ids that are all one person pair by pair, each group sorted; and the pairs of those that only hang together.

    A chain (the first like the second, the second like the third, the first not like the third) may be two people
    with somebody between them.
    """
    group: dict[str, set[str]] = {}
    for first, second in pairs:
        joined = group.get(first, {first}) | group.get(second, {second})
        for id in joined:
            group[id] = joined
    sure = {frozenset(pair) for pair in pairs}
    merges, chained = [], []
    for ids in sorted({tuple(sorted(each)) for each in group.values()}):
        within = list(itertools.combinations(ids, 2))
        if all(frozenset(pair) in sure for pair in within):
            merges.append(ids)
        else:
            chained += within
    return tuple(merges), chained


def _eer(vectors: NDArray[np.float32], speakers: Sequence[str], unknown: Sequence[tuple[str, str]]) -> float:
    """EER in percent of all pairs of clips with a speaker, but for unknown pairs."""
    known = [row for row, speaker in enumerate(speakers) if speaker]
    cosine = vectors[known] @ vectors[known].T
    names, code = np.unique([speakers[row] for row in known], return_inverse=True)
    place = {str(name): number for number, name in enumerate(names)}
    allowed = np.ones((len(names), len(names)), bool)
    for first, second in unknown:
        if first in place and second in place:
            allowed[place[first], place[second]] = allowed[place[second], place[first]] = False
    left, right = np.triu_indices(len(known), 1)
    target = code[left] == code[right]
    use = allowed[code[left], code[right]]
    scores = cosine[left, right]
    return 100.0 * eer(scores[use & target], scores[use & ~target])


def _renamed(clips: Sequence[tuple[int, str]], corrections: Corrections) -> list[str]:
    """The speaker of each (number, speaker) after the corrections; empty for what is dropped."""
    first = {id: merge[0] for merge in corrections.merge for id in merge}
    gone, dropped = set(corrections.drop_clips), set(corrections.drop_ids)
    return ["" if number in gone or speaker in dropped else first.get(speaker, speaker) for number, speaker in clips]


def apply_corrections(clips: Sequence[PreparedClip], corrections: Corrections) -> list[PreparedClip]:
    """The clips of one corpus, in the manifest's order, under corrected ids; a dropped clip has no speaker.

    Raises
    ------
    ValueError
        If a correction names an id or a clip that is not there: it was made for another version of the corpus.
    """
    there = {clip.speaker for clip in clips}
    named = {id for merge in corrections.merge for id in merge} | set(corrections.drop_ids)
    if not named <= there:
        raise ValueError(f"corrections name ids that are not there: {', '.join(sorted(named - there)[:5])}")
    if any(not 0 <= number < len(clips) for number in corrections.drop_clips):
        raise ValueError(f"corrections name clips beyond the {len(clips)} that are there")
    speakers = _renamed([(number, clip.speaker) for number, clip in enumerate(clips)], corrections)
    return [
        clip if clip.speaker == speaker else dataclasses.replace(clip, speaker=speaker)
        for clip, speaker in zip(clips, speakers, strict=True)
    ]


def correct_labels(sets: Sequence[PreparedSet], corrections: Mapping[str, Corrections]) -> None:
    """Correct the speakers of prepared sets that were prepared before the audit; of an unknown pair one is left out.

    Parameters
    ----------
    sets : sequence of PreparedSet
        Changed in memory, not on disk.
    corrections : mapping from corpus to Corrections
        From `read_corrections`.
    """
    for each in sets:
        found = corrections.get(each.folder.name)
        if found is not None:
            unknown = tuple(pair[1] for pair in found.unknown_pairs)
            each.clips = apply_corrections(each.clips, dataclasses.replace(found, drop_ids=(*found.drop_ids, *unknown)))
            # Whoever is also known by an id that was trained on is not held out.
            each.held_out -= {id for merge in found.merge if not each.held_out.issuperset(merge) for id in merge}


def find_copies(prepared: PreparedSet) -> list[tuple[int, int]]:
    """Pairs of clips (earlier, later) that are one recording: equal samples, or equal length and level contour.

    Copies at another level, or coded once more, have one contour; two takes of a sentence have not.
    """
    by_hash: dict[bytes, int] = {}
    by_frames: dict[int, list[int]] = defaultdict(list)
    copies = []
    for index, clip in enumerate(prepared.clips):
        samples = prepared.samples(index)
        first = by_hash.setdefault(hashlib.sha256(samples.tobytes()).digest(), index)
        if first != index:
            copies.append((first, index))
        elif clip.samples // FRAME >= 20:
            by_frames[clip.samples // FRAME].append(index)
    for frames, indices in by_frames.items():
        if len(indices) < 2:
            continue
        contours = np.stack([_contour(prepared, index, frames) for index in indices])
        for begin in range(0, len(indices), 1000):
            likeness = contours[begin : begin + 1000] @ contours.T
            for row, column in np.argwhere(likeness >= SAME_CONTOUR):
                if begin + row < column:
                    copies.append((indices[begin + int(row)], indices[int(column)]))
    return sorted(copies)


def _contour(prepared: PreparedSet, index: int, frames: int) -> NDArray[np.float32]:
    """Level in dB every 10 ms, of mean 0 and norm 1: the product of two is their correlation."""
    level = np.square(prepared.waveform(index)[: frames * FRAME].reshape(frames, FRAME)).mean(axis=1)
    contour = 10.0 * np.log10(level + 1e-7)
    contour -= contour.mean()
    return np.asarray(contour / max(float(np.linalg.norm(contour)), 1e-6), np.float32)


def write_corrections(path: Path, audits: Sequence[Audit]) -> None:
    """Write corrections as JSON, corpus by corpus, atomically; corpora of earlier audits in the file stay."""
    known = (
        {corpus: dataclasses.asdict(each) for corpus, each in read_corrections(path).items()} if path.is_file() else {}
    )
    known |= {each.corpus: dataclasses.asdict(each.corrections) for each in audits}
    text = json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False)
    write_atomically(path, text + "\n", 0o666)


def read_corrections(path: Path) -> dict[str, Corrections]:
    """Corpus -> what is to be changed in it.

    Raises
    ------
    ValueError
        If the file is not what `write_corrections` writes.
    """
    try:
        saved: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return {
            corpus: Corrections(
                tuple(tuple(map(str, merge)) for merge in each["merge"]),
                tuple(map(str, each["drop_ids"])),
                tuple(int(number) for number in each["drop_clips"]),
                tuple((str(first), str(second)) for first, second in each["unknown_pairs"]),
            )
            for corpus, each in saved.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a file of label corrections ({error})") from None


def format_audits(audits: Sequence[Audit]) -> str:
    """A Markdown table, one row a corpus."""
    names = list(dict.fromkeys(name for each in audits for name in each.eer_before))
    head = ["corpus", "ids", "clips", "merged", "ids dropped", "clips dropped", "unknown pairs", "copies"]
    head += [f"EER %, {name}: before -> after" for name in names]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for each in audits:
        fixed = each.corrections
        merged = sum(len(merge) - 1 for merge in fixed.merge)
        row = [each.corpus, each.ids, each.clips, merged, len(fixed.drop_ids), len(fixed.drop_clips)]
        row += [len(fixed.unknown_pairs), len(each.copies)]
        row += [
            f"{each.eer_before[name]:.2f} -> {each.eer_after[name]:.2f}" if name in each.eer_before else "-"
            for name in names
        ]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)
