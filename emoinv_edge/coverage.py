"""What a profile covers of its speaker's ways of speaking, and what to say next.

Measured on the speech alone, without a guess of emotions: how far the exemplars reach in vocal effort, in pitch and
in brightness (the shape of the spectrum). Profiles that reach further reject fewer of the owner's utterances in
emotions that they have not heard; how many, the model's calibration knows (`Calibration.coverage`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .quality import SpeechQuality

if TYPE_CHECKING:
    from .calibration import Calibration

__all__ = ["Coverage", "coverage_of", "next_prompt"]

# As far as four utterances of one speaker in four emotions reach, or a little further.
WIDE_F0_SEMITONES = 12.0
WIDE_EFFORT_DB = 9.0
WIDE_BRIGHTNESS_DB = 6.0
# A side of the first, normal utterance that is covered so far (as a share of the whole) leaves room for the other.
SIDE = 0.5
COVERED = 0.9

# What is asked for where a measure lacks most: the raised voice first, it rises more easily than it falls.
RAISED = {"effort": "call", "pitch": "excited", "brightness": "annoyed"}
LOWERED = {"effort": "soft", "pitch": "tired", "brightness": "smiling"}


@dataclasses.dataclass(frozen=True, slots=True)
class Coverage:
    """How far the utterances of a profile reach.

    Parameters
    ----------
    effort_db : float
        From the least to the most vocal effort: span of `SpeechQuality.tilt_db`.
    f0_semitones : float
        From a deviation below the lowest mean pitch to one above the highest.
    brightness_db : float
        Largest distance of two spectral envelopes; 0 where fewer than two are known.
    share : float
        0 to 1: the mean of the three, each against what is wide.
    prompt : str
        Of `emoinv_edge.prompts.PROMPTS`: what would help most; ``enough`` where little is missing.
    frr : float or None
        Share of the owner's utterances, in emotions that such a profile has not heard, that are rejected at 1 in 100
        impostors; of acted speech that the calibration was made with. None where the calibration does not say.
    """

    effort_db: float
    f0_semitones: float
    brightness_db: float
    share: float
    prompt: str
    frr: float | None = None


def coverage_of(utterances: Sequence[SpeechQuality], calibration: Calibration | None = None) -> Coverage | None:
    """The coverage of a profile with these exemplars, the first of them normal speech; None without any.

    Parameters
    ----------
    utterances : sequence of SpeechQuality
    calibration : Calibration, optional
        Of the model that made the profile.
    """
    if not utterances:
        return None
    pitch = [(each.log_f0_mean, each.log_f0_std) for each in utterances if each.log_f0_mean is not None]
    f0 = 0.0
    if pitch:
        f0 = max(mean + spread for mean, spread in pitch) - min(mean - spread for mean, spread in pitch)
    effort = [each.tilt_db for each in utterances if each.log_f0_mean is not None] or [0.0]
    shapes = [each.envelope for each in utterances if each.envelope is not None]
    brightness = max((math.dist(a, b) for a in shapes for b in shapes), default=0.0)
    spans = {
        "effort": (max(effort) - min(effort)) / WIDE_EFFORT_DB,
        "pitch": 12.0 / math.log(2.0) * f0 / WIDE_F0_SEMITONES,
        "brightness": brightness / WIDE_BRIGHTNESS_DB,
    }
    share = sum(min(1.0, span) for span in spans.values()) / len(spans)
    return Coverage(
        effort_db=max(effort) - min(effort),
        f0_semitones=12.0 / math.log(2.0) * f0,
        brightness_db=brightness,
        share=share,
        prompt=_most_wanted(utterances, spans) if share < COVERED else "enough",
        frr=None if calibration is None else calibration.expected_frr(share),
    )


def _most_wanted(utterances: Sequence[SpeechQuality], spans: dict[str, float]) -> str:
    """The prompt for the measure that lacks most, to the side of the first utterance that is not covered."""
    measure = min(spans, key=lambda each: spans[each])
    first = utterances[0]
    if measure == "effort":
        raised = max(each.tilt_db for each in utterances) - first.tilt_db > SIDE * WIDE_EFFORT_DB
    elif measure == "pitch":
        known = [each.log_f0_mean for each in utterances if each.log_f0_mean is not None]
        rise = max(known) - first.log_f0_mean if known and first.log_f0_mean is not None else 0.0
        raised = 12.0 / math.log(2.0) * rise > SIDE * WIDE_F0_SEMITONES
    else:
        raised = len(utterances) % 2 == 0  # a distance has no sides
    return (LOWERED if raised else RAISED)[measure]


def next_prompt(utterances: Sequence[SpeechQuality], before: str = "") -> str:
    """The prompt that comes next in an enrolment: normal speech, then what lacks most, never one twice running.

    Parameters
    ----------
    utterances : sequence of SpeechQuality
        Accepted so far.
    before : str
        The prompt that the last of them answered.
    """
    found = coverage_of(utterances)
    if found is None:
        return "normal"
    if found.prompt != before or found.prompt == "enough":
        return found.prompt
    pairs = [*RAISED.values(), *LOWERED.values()]
    return pairs[(pairs.index(before) + 1) % len(pairs)]
