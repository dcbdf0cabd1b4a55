"""What enrolment is worth in practice: profiles of several kinds, tried in emotions that none of them holds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.attempts import one_voice
from emoinv_edge.calibration import Calibration
from emoinv_edge.enrolment import MIN_UTTERANCE_S
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.scoring import ProfileBank
from emoinv_edge.utterance import unusable

from .clips import Clip, is_neutral
from .embeddings import Heard
from .figures import with_interval
from .metrics import bootstrap_far_frr
from .protocols import speaker_pairs
from .sessions import session_scores

__all__ = ["DESIGNS", "evaluate_enrolment", "format_enrolment"]

TARGET_FAR = 0.01
# Emotions that are enrolled, where a set has them; where it lacks one, one more neutral clip takes its place.
ENROLLED = ("neutral", "calm", "happy", "angry")
DESIGNS = {
    "1 neutral": {"neutral": 1},
    "4 neutral": {"neutral": 4},
    "1 in each of 4 emotions": dict.fromkeys(ENROLLED, 1),
    "2 in each of 4 emotions": dict.fromkeys(ENROLLED, 2),
}
ATTEMPTS = 2
PAIRS = 28  # sessions of one speaker and emotion: all pairs of eight clips

Utterance = tuple[NDArray[np.float32], SpeechQuality]


@dataclasses.dataclass(frozen=True, slots=True)
class _Tried:
    """Tests or sessions against profiles: the trials of the same gender, one value each."""

    target: NDArray[np.bool_]
    owner: NDArray[np.int64]
    speaker: NDArray[np.int64]

    def rates(self, accepted: NDArray[np.bool_], resamples: int, seed: int) -> dict[str, Any]:
        """FAR and FRR, with 95 % intervals over speakers where there are resamples."""
        own, strange = accepted[self.target], accepted[~self.target]
        out: dict[str, Any] = {"frr": float(1.0 - own.mean()), "far": float(strange.mean())}
        if resamples:
            pairs = speaker_pairs(self.target, self.owner, self.speaker)
            values = own.astype(np.float64), strange.astype(np.float64)
            far, frr = bootstrap_far_frr(*values, 0.5, *pairs, np.random.default_rng(seed), resamples)
            out |= {"far_interval": list(far[:2]), "frr_interval": list(frr[:2])}
        return out


def evaluate_enrolment(
    heard: Sequence[Heard | None], clips: Sequence[Clip], calibration: Calibration, resamples: int = 0, seed: int = 0
) -> dict[str, Any] | None:
    """FRR and FAR at the threshold for 1 in 100 by how a speaker is enrolled, of one attempt and of two.

    Profiles hold the speaker's first clips in the manifest's order that can be enrolled. Tests are in emotions other
    than `ENROLLED`, so that no profile holds any of them. Two attempts are two clips of one emotion.

    Parameters
    ----------
    heard, clips : sequence
        From `hear_set`, and the labels of the same clips.
    calibration : Calibration
    resamples, seed : int
        Of the bootstrap over the speakers.

    Returns
    -------
    dict or None
        ``tested`` (the emotions), ``speakers``, ``tests``, ``sessions`` (genuine ones), ``mixed`` (share of the
        genuine sessions that are taken for two voices) and ``designs``: of each, ``one`` (attempt), ``either`` (of
        two, each at its own threshold) and ``session`` (if the calibration knows the thresholds of sessions), each
        with ``frr`` and ``far``. None where no speaker can be enrolled in each way, or there is nothing to try.
    """
    usable: dict[int, Utterance] = {}
    for i, each in enumerate(heard):
        if each is not None and clips[i].speaker and clips[i].emotion:
            usable[i] = each.embedding, each.quality
    profiles = _profiles(usable, clips)
    cells: dict[tuple[str, str], list[int]] = {}
    for i in usable:
        if not is_neutral(clips[i]) and clips[i].emotion not in ENROLLED:
            cells.setdefault((clips[i].speaker, clips[i].emotion), []).append(i)
    cells = {key: found for key, found in cells.items() if key[0] in profiles}
    if len(profiles) < 2 or not cells:
        return None
    place = {i: row for row, i in enumerate(usable)}
    utterances = list(usable.values())
    tests = [place[i] for found in cells.values() for i in found]
    pairs = [tuple(place[i] for i in pair) for found in cells.values() for pair in _pairs(found)]
    of = list(usable)
    alone = _trials([clips[of[row]] for row in tests], clips, profiles)
    twice = _trials([clips[of[pair[0]]] for pair in pairs], clips, profiles)
    single = np.array([one_voice(calibration, utterances[a], utterances[b]) for a, b in pairs], bool)
    one = calibration.threshold(TARGET_FAR, extrapolate=True)
    measured = any(rise.attempts == ATTEMPTS for rise in calibration.session_rises)
    together = calibration.session_threshold(one, ATTEMPTS, extrapolate=True).llr
    designs = {}
    for name in DESIGNS:
        bank = _bank(usable, [profiles[speaker][name] for speaker in profiles], calibration)
        llrs = session_scores(utterances, [(row,) for row in tests], bank, calibration)[1]
        scores = session_scores(utterances, pairs, bank, calibration)[ATTEMPTS] if pairs else None
        found = {"one": alone[0].rates(llrs[alone[1]] >= one.llr, resamples, seed)}
        if scores is not None:
            row_of = {row: k for k, row in enumerate(tests)}
            best = np.array([llrs[[row_of[a], row_of[b]]].max(axis=0) for a, b in pairs])
            found["either"] = twice[0].rates(best[twice[1]] >= one.llr, resamples, seed)
            if measured:
                accepted = (scores >= together) & single[:, None]
                found["session"] = twice[0].rates(accepted[twice[1]], resamples, seed)
        designs[name] = found
    return {
        "tested": sorted({emotion for _, emotion in cells}),
        "speakers": len(profiles),
        "tests": len(tests),
        "sessions": len(pairs),
        "mixed": float(1.0 - single.mean()) if pairs else 0.0,
        "threshold": one.llr,
        "designs": designs,
    }


def _profiles(usable: Mapping[int, Utterance], clips: Sequence[Clip]) -> dict[str, dict[str, list[int]]]:
    """The clips of each design, for the speakers who have clips enough for all of them."""
    cells: dict[str, dict[str, list[int]]] = {}
    for i, (_, quality) in usable.items():
        if unusable(quality, MIN_UTTERANCE_S) is None:
            label = "neutral" if is_neutral(clips[i]) else clips[i].emotion
            cells.setdefault(clips[i].speaker, {}).setdefault(label, []).append(i)
    known = {label for own in cells.values() for label in own}
    out = {}
    for speaker, own in cells.items():
        made = {}
        for name, design in DESIGNS.items():
            wanted = {label: count for label, count in design.items() if label in known}
            wanted["neutral"] = wanted.get("neutral", 0) + sum(design.values()) - sum(wanted.values())
            picked = {label: own.get(label, [])[:count] for label, count in wanted.items()}
            if all(len(picked[label]) == count for label, count in wanted.items()):
                made[name] = [i for found in picked.values() for i in found]
        if len(made) == len(DESIGNS):
            out[speaker] = made
    return out


def _pairs(found: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of clips, spread evenly over all there are."""
    every = list(itertools.combinations(found, 2))
    count = min(PAIRS, len(every))
    return [every[k * len(every) // count] for k in range(count)]


def _trials(
    tried: Sequence[Clip], clips: Sequence[Clip], profiles: Mapping[str, object]
) -> tuple[_Tried, tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """The trials of each test with each profile of the same gender, and their rows and columns."""
    names = list(profiles)
    gender = {clip.speaker: clip.gender for clip in clips}
    number = {name: k for k, name in enumerate(names)}
    met = np.array([[not gender[n] or not clip.gender or gender[n] == clip.gender for n in names] for clip in tried])
    test, row = np.nonzero(met)
    speaker = np.array([number[clip.speaker] for clip in tried], np.int64)[test]
    return _Tried(speaker == row, row.astype(np.int64), speaker), (test, row)


def _bank(usable: Mapping[int, Utterance], profiles: Sequence[Sequence[int]], calibration: Calibration) -> ProfileBank:
    members = [usable[i] for profile in profiles for i in profile]
    vectors, qualities = np.stack([vector for vector, _ in members]), [quality for _, quality in members]
    counts = list(map(len, profiles))
    return ProfileBank.from_arrays(list(map(str, profiles)), vectors, qualities, counts, calibration.emotion_axis)


def format_enrolment(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of the sets, in Markdown and in percent."""
    lines = []
    for name, found in results.items():
        lines += [
            f"{name}: {found['speakers']} speakers, tested in emotions that no enrolment holds "
            f"({', '.join(found['tested'])}); {found['tests']} tests, {found['sessions']} sessions of two, at the "
            "threshold for 1 in 100",
            "",
            "| enrolled | FRR / FAR % of one attempt | of either of two | of two as a session |",
            "|---|---|---|---|",
        ]
        for design, figures in found["designs"].items():
            cells = [_cell(figures[kind]) if kind in figures else "" for kind in ("one", "either", "session")]
            lines.append(f"| {design} | {' | '.join(cells)} |")
        lines += ["", f"Taken for two voices: {100 * found['mixed']:.1f} % of the genuine sessions.", ""]
    return "\n".join(lines)


def _cell(figures: Mapping[str, Any]) -> str:
    return " / ".join(with_interval(figures[kind], figures.get(f"{kind}_interval")) for kind in ("frr", "far"))
