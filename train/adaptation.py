"""What guarded adaptation gains and risks: simulated sessions on development speech.

For each speaker: a profile of four neutral clips; a thousand sessions by the owner in any mood, one
in a hundred by an impostor (always the same one, the most patient attack); the profile may learn by
the rule of `emoinv_edge.adaptation`. False rejects and false accepts are counted before and after,
on clips that no session used.
"""

from __future__ import annotations

import dataclasses
import datetime

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.adaptation import LIMIT, admissible
from emoinv_edge.profiles import Exemplar
from emoinv_edge.scoring import Calibration, ProfileBank

from .calibrate import DevelopmentSpeech

__all__ = ["Outcome", "simulate"]

ENROL_CLIPS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """Sums over the simulated owners; rates are fractions."""

    owners: int
    sessions: int
    impostor_sessions: int
    learnt_own: int  # exemplars taken from the owner
    learnt_foreign: int  # exemplars taken from the impostor
    frr_before: float  # on the owner's unused emotional clips
    frr_after: float
    far_before: float  # on unused clips of all other speakers of the gender
    far_after: float
    attacker_before: float  # on unused clips of the impostor of the sessions
    attacker_after: float


def simulate(
    speech: DevelopmentSpeech,
    calibration: Calibration,
    target_far: float = 0.01,
    sessions: int = 1000,
    impostor_share: float = 0.01,
    limit: int = LIMIT,
    seed: int = 0,
) -> Outcome:
    """Run the sessions for every speaker with enough clips.

    Parameters
    ----------
    speech : DevelopmentSpeech
        At least two speakers of one gender and corpus with eight neutral and eight other clips.
    calibration : Calibration
    target_far : float
    sessions : int
        Per owner.
    impostor_share : float
        Of the sessions.
    limit : int
        Adapted exemplars kept.
    seed : int
    """
    clips = speech.clips
    by_speaker: dict[tuple[str, str, str], list[int]] = {}
    for i, clip in enumerate(clips):
        by_speaker.setdefault((clip.corpus, clip.gender, clip.speaker), []).append(i)
    threshold = calibration.threshold(target_far).llr
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)

    def exemplar(i: int) -> Exemplar:
        return Exemplar(speech.embeddings[i], speech.qualities[i], now)

    def llrs(held: list[Exemplar], tests: list[int]) -> NDArray[np.float64]:
        bank = ProfileBank.of_exemplars(held, calibration.moods)
        return np.array([calibration.score(bank, speech.embeddings[i], speech.qualities[i])[0][0] for i in tests])

    counts = np.zeros(4, np.int64)  # owners, impostor sessions, learnt own, learnt foreign
    rates: list[list[float]] = []
    for number, (key, own) in enumerate(sorted(by_speaker.items())):
        neutral = [i for i in own if clips[i].emotion in ("neutral", "")]
        others = [k for k in by_speaker if k[:2] == key[:2] and k != key and len(by_speaker[k]) >= 4]
        if len(neutral) < 8 or len(own) - len(neutral) < 8 or not others:
            continue
        rng = np.random.default_rng((seed, number))
        enrolled = [int(i) for i in rng.permutation(neutral)[:ENROL_CLIPS]]
        free = [int(i) for i in rng.permutation([i for i in own if i not in set(enrolled)])]
        used, unused = free[: len(free) // 2], free[len(free) // 2 :]
        emotional = [i for i in unused if clips[i].emotion not in ("neutral", "")]
        if not emotional:
            continue
        attacker = others[int(rng.integers(len(others)))]
        theirs = [int(i) for i in rng.permutation(by_speaker[attacker])]
        attack, attack_later = theirs[: len(theirs) // 2], theirs[len(theirs) // 2 :]
        strangers = [i for k in others if k != attacker for i in by_speaker[k]] or attack_later
        start = [exemplar(i) for i in enrolled]
        adapted: list[tuple[Exemplar, bool]] = []
        for _ in range(sessions):
            foreign = bool(rng.random() < impostor_share)
            i = int(rng.choice(attack if foreign else used))
            counts[1] += foreign
            held = [*start, *(each for each, _ in adapted)]
            if llrs(held, [i])[0] < threshold:
                continue
            if admissible(calibration, tuple(start), tuple(held), speech.embeddings[i], speech.qualities[i]):
                adapted = [*adapted, (exemplar(i), foreign)][-limit:]
                counts[3 if foreign else 2] += 1
        after = [*start, *(each for each, _ in adapted)]
        counts[0] += 1
        rates.append(
            [
                float(np.mean(llrs(start, emotional) < threshold)),
                float(np.mean(llrs(after, emotional) < threshold)),
                float(np.mean(llrs(start, strangers) >= threshold)),
                float(np.mean(llrs(after, strangers) >= threshold)),
                float(np.mean(llrs(start, attack_later) >= threshold)),
                float(np.mean(llrs(after, attack_later) >= threshold)),
            ]
        )
    if not rates:
        raise ValueError("no speaker has eight neutral and eight other clips, and company of the same gender")
    means = np.mean(rates, axis=0)
    return Outcome(
        owners=int(counts[0]),
        sessions=sessions,
        impostor_sessions=int(counts[1]),
        learnt_own=int(counts[2]),
        learnt_foreign=int(counts[3]),
        frr_before=float(means[0]),
        frr_after=float(means[1]),
        far_before=float(means[2]),
        far_after=float(means[3]),
        attacker_before=float(means[4]),
        attacker_after=float(means[5]),
    )
