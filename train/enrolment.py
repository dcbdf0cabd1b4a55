"""What enrolment refuses: own and others' utterances tried on profiles that are just being made.

The rule is `emoinv_edge.enrolment`'s own; the speech is development speech, measured as a verifier would.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import SAME_SPEAKER_PRIOR, Enroller
from emoinv_edge.scoring import Calibration, ProfileBank, bayes_threshold

from .calibrate import DevelopmentSpeech
from .prepare import PreparedSet

__all__ = ["Refusals", "SecondVoices", "refusals", "second_voices"]

STARTS = 4  # first utterances of a speaker
OWN = 10
OTHERS = 20
SIDE_S = 3.0  # of each of two voices in one recording


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
        neutral = [i for i in own if clips[i].emotion in ("neutral", "")]
        gender = clips[own[0]].gender
        strange = [
            i for name, found in by_speaker.items() if name != speaker for i in found if clips[i].gender == gender
        ]
        for start in (int(i) for i in rng.permutation(neutral)[:STARTS]):
            bank = ProfileBank.from_arrays(
                ["s"], speech.embeddings[[start]], [speech.qualities[start]], [1], calibration.moods
            )

            def llr(i: int, bank: ProfileBank = bank) -> float:
                return float(calibration.score(bank, speech.embeddings[i], speech.qualities[i])[0][0])

            rest = [int(i) for i in rng.permutation([i for i in own if i != start])]
            moody = [i for i in rest if clips[i].emotion not in ("neutral", "")]
            calm = [i for i in rest if clips[i].emotion in ("neutral", "")]
            drawn = [int(i) for i in rng.permutation(strange)[:OTHERS]]
            for kind, offered in (("emotional", moody[:OWN]), ("neutral", calm[:OWN]), ("others", drawn)):
                refused[kind] += [llr(i) < limit for i in offered]
    share = {kind: float(np.mean(found)) if found else float("nan") for kind, found in refused.items()}
    return Refusals(share["emotional"], share["neutral"], share["others"], sum(map(len, refused.values())))


@dataclasses.dataclass(frozen=True, slots=True)
class SecondVoices:
    """Shares of the recordings that are refused for a second voice in them; NaN where there were none."""

    two_voices: float
    one_voice: float
    tries: int  # of each kind


def second_voices(
    encoder: Encoder, prepared: PreparedSet, calibration: Calibration | None = None, tries: int = 60, seed: int = 0
) -> SecondVoices:
    """Join clips to six seconds, of two speakers of one gender or of one speaker, and enrol them.

    Parameters
    ----------
    encoder : Encoder
    prepared : PreparedSet
        Of one corpus.
    calibration : Calibration, optional
        Instead of the model's own.
    tries : int
    seed : int
    """
    rng = np.random.default_rng((seed, 5))
    by_speaker: dict[tuple[str, str], list[int]] = {}
    for i, clip in enumerate(prepared.clips):
        if clip.speaker and clip.emotion in ("neutral", ""):
            by_speaker.setdefault((clip.gender, clip.speaker), []).append(i)
    length = round(SIDE_S * encoder.spec.sample_rate)

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
            feedback = Enroller(encoder, calibration=calibration).add(
                np.concatenate((side(key), second)), encoder.spec.sample_rate
            )
            if feedback.accepted or feedback.reason == "second_voice":
                found[two].append(not feedback.accepted)
    share = {two: float(np.mean(each)) if each else float("nan") for two, each in found.items()}
    return SecondVoices(share[True], share[False], len(found[True]))
