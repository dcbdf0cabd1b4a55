"""Enrolment and guarded adaptation rehearsed on development speech, by the runtime's own rules."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.adaptation import LIMIT, admissible
from emoinv_edge.calibration import Calibration, bayes_threshold
from emoinv_edge.clips import SAME_SPEAKER_PRIOR
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.profiles import Exemplar
from emoinv_edge.scoring import ProfileBank

from ..evaluation.clips import is_neutral
from ..evaluation.protocols import ENROL_CLIPS
from ..prepare import PreparedSet
from .speech import DevelopmentSpeech

__all__ = ["Adaptation", "Refusals", "SecondVoices", "adaptation", "refusals", "second_voices"]

STARTS = 4  # first utterances of a speaker
OWN = 10
OTHERS = 20
SIDE_S = 3.0  # of each of two voices in one recording


def _llrs(
    speech: DevelopmentSpeech, calibration: Calibration, held: Sequence[Exemplar], tests: Sequence[int]
) -> NDArray[np.float64]:
    """LLR of each test against one profile."""
    bank = ProfileBank.of_exemplars(held, calibration.emotion_axis)
    return np.array([bank.score(calibration, speech.embeddings[i], speech.qualities[i])[0][0] for i in tests])


def _exemplar(speech: DevelopmentSpeech, index: int) -> Exemplar:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    return Exemplar(speech.embeddings[index], speech.qualities[index], now)


@dataclasses.dataclass(frozen=True, slots=True)
class Refusals:
    """Shares of the second utterances that are refused as another speaker's; NaN where there were none."""

    own_emotional: float
    own_neutral: float
    others: float  # of the same gender
    tries: int


def refusals(speech: DevelopmentSpeech, calibration: Calibration, seed: int = 0) -> Refusals:
    """Enrol one neutral utterance of each speaker, several times, and offer it own and others' utterances.

    Parameters
    ----------
    speech : DevelopmentSpeech
        Of one corpus.
    calibration : Calibration
    seed : int
    """
    clips, copies = speech.clips, speech.copies()
    by_speaker: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        if i not in copies:
            by_speaker.setdefault(clip.speaker, []).append(i)
    limit = bayes_threshold(SAME_SPEAKER_PRIOR)
    refused: dict[str, list[bool]] = {"emotional": [], "neutral": [], "others": []}
    for number, (speaker, own) in enumerate(sorted(by_speaker.items())):
        rng = np.random.default_rng((seed, number))
        gender = clips[own[0]].gender
        strange = [
            i for name, found in by_speaker.items() if name != speaker for i in found if clips[i].gender == gender
        ]
        for start in (int(i) for i in rng.permutation([i for i in own if is_neutral(clips[i])])[:STARTS]):
            rest = [int(i) for i in rng.permutation([i for i in own if i != start])]
            emotional = [i for i in rest if not is_neutral(clips[i])]
            neutral = [i for i in rest if is_neutral(clips[i])]
            drawn = [int(i) for i in rng.permutation(strange)[:OTHERS]]
            for kind, offered in (("emotional", emotional[:OWN]), ("neutral", neutral[:OWN]), ("others", drawn)):
                found = _llrs(speech, calibration, [_exemplar(speech, start)], offered)
                refused[kind] += (found < limit).tolist()
    share = {kind: float(np.mean(found)) if found else float("nan") for kind, found in refused.items()}
    return Refusals(share["emotional"], share["neutral"], share["others"], sum(map(len, refused.values())))


@dataclasses.dataclass(frozen=True, slots=True)
class SecondVoices:
    """Shares of the recordings that are refused for a second voice in them; NaN where there were none."""

    two_voices: float
    one_voice: float
    tries: int  # of each kind


def second_voices(encoder: Encoder, prepared: PreparedSet, tries: int = 60, seed: int = 0) -> SecondVoices:
    """Join clips to six seconds, of two speakers of one gender or of one speaker, and enrol them.

    Parameters
    ----------
    encoder : Encoder
        With a calibration.
    prepared : PreparedSet
        Of one corpus.
    tries : int
    seed : int
    """
    rng = np.random.default_rng((seed, 5))
    by_speaker: dict[tuple[str, str], list[int]] = {}
    for i, clip in enumerate(prepared.clips):
        if clip.speaker and is_neutral(clip):
            by_speaker.setdefault((clip.gender, clip.speaker), []).append(i)
    rate = encoder.spec.sample_rate
    length = round(SIDE_S * rate)

    def side(key: tuple[str, str]) -> NDArray[np.float32]:
        pieces: list[NDArray[np.float32]] = []
        for i in rng.permutation(by_speaker[key]):
            pieces.append(prepared.waveform(int(i)))
            if sum(map(len, pieces)) >= length:
                break
        return np.concatenate(pieces)[:length]

    keys = sorted(by_speaker)
    found: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(tries):
        key = keys[int(rng.integers(len(keys)))]
        others = [other for other in keys if other[0] == key[0] and other != key]
        if not others:
            continue
        for two in (True, False):
            second = side(others[int(rng.integers(len(others)))] if two else key)
            feedback = Enroller(encoder).add(np.concatenate((side(key), second)), rate)
            if feedback.accepted or feedback.reason == "second_voice":
                found[two].append(not feedback.accepted)
    share = {two: float(np.mean(each)) if each else float("nan") for two, each in found.items()}
    return SecondVoices(share[True], share[False], len(found[True]))


@dataclasses.dataclass(frozen=True, slots=True)
class Adaptation:
    """Sums and means over the simulated owners; rates are fractions."""

    owners: int
    sessions: int
    impostor_sessions: int
    adapted_own: int  # exemplars taken from the owner
    adapted_foreign: int  # exemplars taken from the impostor
    frr_before: float  # on the owner's unused emotional clips
    frr_after: float
    far_before: float  # on unused clips of all other speakers of the gender
    far_after: float
    attacker_before: float  # on unused clips of the impostor of the sessions
    attacker_after: float


def adaptation(
    speech: DevelopmentSpeech,
    calibration: Calibration,
    target_far: float = 0.01,
    sessions: int = 1000,
    impostor_share: float = 0.01,
    limit: int = LIMIT,
    seed: int = 0,
    confirm: bool = False,
) -> Adaptation:
    """What guarded adaptation gains and risks: sessions simulated for every speaker with enough clips.

    A profile of four neutral clips; sessions by the owner in any emotion, some by an impostor (always the same one,
    the most patient attack); the profile may adapt by the rule of `emoinv_edge.adaptation`. FRR and FAR are counted
    before and after, on clips that no session used.

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
    confirm : bool
        Whether every rejected session is proven to be the owner's in another way (`Adapter.confirm`), the impostor's
        too, as if the proof were known to the impostor.

    Raises
    ------
    ValueError
        If no speaker has clips enough.
    """
    clips = speech.clips
    by_speaker: dict[tuple[str, str, str], list[int]] = {}
    for i, clip in enumerate(clips):
        by_speaker.setdefault((clip.corpus, clip.gender, clip.speaker), []).append(i)
    threshold = calibration.threshold(target_far).llr
    counts = np.zeros(3, np.int64)  # impostor sessions, adapted from the owner, from the impostor
    rates: list[list[float]] = []
    for number, (key, own) in enumerate(sorted(by_speaker.items())):
        others = [k for k in by_speaker if k[:2] == key[:2] and k != key and len(by_speaker[k]) >= 4]
        roles = _roles(speech, own, [by_speaker[k] for k in others], np.random.default_rng((seed, number)))
        if roles is None:
            continue
        drawn = []
        for _ in range(sessions):
            foreign = bool(roles.rng.random() < impostor_share)
            drawn.append((int(roles.rng.choice(roles.attack if foreign else roles.used)), foreign))
        start = [_exemplar(speech, i) for i in roles.enrolled]
        adapted = _adapt(speech, calibration, start, drawn, threshold, limit, counts, confirm)
        # Before and after each: the owner rejected, strangers accepted, the attacker accepted.
        found = [
            [_llrs(speech, calibration, held, tests) for held in (start, [*start, *adapted])]
            for tests in (roles.emotional, roles.strangers, roles.attack_later)
        ]
        rates.append(
            [float(np.mean(llrs < threshold)) for llrs in found[0]]
            + [float(np.mean(llrs >= threshold)) for pair in found[1:] for llrs in pair]
        )
    if not rates:
        raise ValueError("no speaker has eight neutral and eight other clips, and company of the same gender")
    return Adaptation(len(rates), sessions, *map(int, counts), *map(float, np.mean(rates, axis=0)))


@dataclasses.dataclass(frozen=True, slots=True)
class _Roles:
    """The clips of one owner's sessions, and the generator that draws from them."""

    enrolled: list[int]
    used: list[int]  # by the owner's sessions
    emotional: list[int]  # unused and not neutral
    attack: list[int]  # by the impostor's sessions
    attack_later: list[int]
    strangers: list[int]
    rng: np.random.Generator


def _roles(
    speech: DevelopmentSpeech, own: Sequence[int], others: Sequence[Sequence[int]], rng: np.random.Generator
) -> _Roles | None:
    """Share out an owner's clips and those of the others of the gender; None where there are too few."""
    neutral = [i for i in own if is_neutral(speech.clips[i])]
    if len(neutral) < 8 or len(own) - len(neutral) < 8 or not others:
        return None
    enrolled = [int(i) for i in rng.permutation(neutral)[:ENROL_CLIPS]]
    free = [int(i) for i in rng.permutation([i for i in own if i not in set(enrolled)])]
    used, unused = free[: len(free) // 2], free[len(free) // 2 :]
    emotional = [i for i in unused if not is_neutral(speech.clips[i])]
    if not emotional:
        return None
    attacker = int(rng.integers(len(others)))
    theirs = [int(i) for i in rng.permutation(others[attacker])]
    attack, later = theirs[: len(theirs) // 2], theirs[len(theirs) // 2 :]
    strangers = [i for k, found in enumerate(others) if k != attacker for i in found] or later
    return _Roles(enrolled, used, emotional, attack, later, strangers, rng)


def _adapt(
    speech: DevelopmentSpeech,
    calibration: Calibration,
    start: Sequence[Exemplar],
    drawn: Sequence[tuple[int, bool]],
    threshold: float,
    limit: int,
    counts: NDArray[np.int64],
    confirm: bool,
) -> list[Exemplar]:
    """The exemplars that the sessions `drawn`, (clip, whether an impostor's), leave in the profile; `counts` rises."""
    adapted: list[Exemplar] = []
    for i, foreign in drawn:
        counts[0] += foreign
        held = [*start, *adapted]
        rejected = bool(_llrs(speech, calibration, held, [i])[0] < threshold)
        if rejected and not confirm:
            continue
        vector, quality = speech.embeddings[i], speech.qualities[i]
        if admissible(calibration, tuple(start), tuple(held), vector, quality, confirmed=rejected):
            adapted = [*adapted, _exemplar(speech, i)][-limit:]
            counts[2 if foreign else 1] += 1
    return adapted
