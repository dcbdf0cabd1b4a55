"""The clips of one enrolment: which hold together as one speaker's, and which are left out.

Every clip is tried against all the others whenever one comes, so that it does not matter which was given first: a
stranger's clip at the beginning is left out as soon as two others agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from .calibration import Calibration, bayes_threshold
from .guards import Guards
from .profiles import Exemplar
from .scoring import ProfileBank
from .speakers import odd_ones

__all__ = ["ADDED_FAR", "Clips", "Doubt", "agreement"]

# To be added to a profile that exists, speech must be what a verifier would accept at this rate.
ADDED_FAR = 0.01
# How sure the enrolment is beforehand that it hears one person, where the model file has no test of its own.
SAME_SPEAKER_PRIOR = 0.9
MOST_DOUBTED = 20  # clips that are remembered because the next ones may agree with them


@dataclasses.dataclass(frozen=True, slots=True)
class Doubt:
    """A clip that does not sound like the speaker of the others.

    Parameters
    ----------
    number : int
        Which one: 0 for the first utterance given to `Enroller.add`, whatever became of it.
    llr : float
        Natural log-likelihood ratio for the speaker of the others.
    least : float
        What is asked for.
    """

    number: int
    llr: float
    least: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Clip:
    number: int
    exemplar: Exemplar


class Clips:
    """Clips of one speaker under collection.

    Parameters
    ----------
    calibration : Calibration
    guards : Guards or None
        Of the model; without any, clips are compared by the calibration alone.
    held : sequence of Exemplar
        Those of a profile that the clips are added to. Then each clip must be what `ADDED_FAR` would accept.
    sure : bool
        Take every clip: somebody knows whose they are. Doubts are kept all the same.
    """

    def __init__(
        self, calibration: Calibration, guards: Guards | None, held: Sequence[Exemplar] = (), *, sure: bool = False
    ) -> None:
        self._calibration = calibration
        self._guards = guards
        self._held = tuple(held)
        self._sure = sure
        self._clips: list[_Clip] = []
        self._kept: list[_Clip] = []
        self._doubts: list[Doubt] = []
        self._undecided = False

    @property
    def kept(self) -> list[Exemplar]:
        """Those that hold together, after the profile's own."""
        return [*self._held, *(clip.exemplar for clip in self._kept)]

    @property
    def taken(self) -> tuple[int, ...]:
        """The numbers of those that hold together, without the profile's own."""
        return tuple(clip.number for clip in self._kept)

    @property
    def given(self) -> list[Exemplar]:
        """Every one, those that are doubted too."""
        return [*self._held, *(clip.exemplar for clip in self._clips)]

    @property
    def doubts(self) -> tuple[Doubt, ...]:
        """The clips that are doubted, in the order in which they were given."""
        return tuple(self._doubts)

    @property
    def undecided(self) -> bool:
        """Whether those that are doubted are as many, and agree among themselves: nobody knows who is the speaker."""
        return self._undecided

    def add(self, number: int, exemplar: Exemplar) -> Doubt | None:
        """Take a clip; the doubt if it does not hold together with the others.

        Parameters
        ----------
        number : int
            By which a `Doubt` names it.
        exemplar : Exemplar
        """
        clip = _Clip(number, exemplar)
        if self._held:
            self._add_to_profile(clip)
        else:
            self._clips.append(clip)
            self._sort_out()
        return next((doubt for doubt in self._doubts if doubt.number == number and not self._sure), None)

    def _add_to_profile(self, clip: _Clip) -> None:
        calibration = self._calibration
        least = calibration.threshold(ADDED_FAR, extrapolate=True).llr
        bank = ProfileBank.of_exemplars(self._held, calibration.emotion_axis)
        llrs, cosines = bank.score(calibration, clip.exemplar.embedding, clip.exemplar.quality)
        fits = llrs[0] >= least and (self._guards is None or cosines[0] >= self._guards.least_cosine)
        if not fits:
            self._doubts = [*self._doubts, Doubt(clip.number, float(llrs[0]), least)][-MOST_DOUBTED:]
        if fits or self._sure:
            self._clips.append(clip)
            self._kept.append(clip)

    def _sort_out(self) -> None:
        odd, _ = odd_ones(self._exemplars(), self._llr, self._least)
        while len(odd) > MOST_DOUBTED:  # of an enrolment without end
            del self._clips[next(iter(odd))]
            odd, _ = odd_ones(self._exemplars(), self._llr, self._least)
        lonely, _ = odd_ones([self._clips[i].exemplar for i in odd], self._llr, self._least)
        agreed = len(odd) - len(lonely)  # clips of the doubted ones that hold together
        self._undecided = bool(odd) and agreed >= len(self._clips) - len(odd)
        self._doubts = [Doubt(self._clips[i].number, llr, self._least) for i, llr in odd.items()]
        self._kept = [clip for i, clip in enumerate(self._clips) if self._sure or i not in odd]

    def _exemplars(self) -> list[Exemplar]:
        return [clip.exemplar for clip in self._clips]

    def _llr(self, others: Sequence[Exemplar], clip: Exemplar) -> float:
        return _agreement(self._calibration, self._guards, others, clip)

    @property
    def _least(self) -> float:
        return bayes_threshold(SAME_SPEAKER_PRIOR) if self._guards is None else self._guards.clips.least


def agreement(calibration: Calibration, guards: Guards | None, exemplars: Sequence[Exemplar]) -> float | None:
    """How sure a profile is of itself: the least LLR of one of its clips against the others; None for one clip."""
    if len(exemplars) < 2:
        return None
    return min(
        _agreement(calibration, guards, [*exemplars[:i], *exemplars[i + 1 :]], clip) for i, clip in enumerate(exemplars)
    )


def _agreement(calibration: Calibration, guards: Guards | None, others: Sequence[Exemplar], clip: Exemplar) -> float:
    axis = calibration.emotion_axis
    if guards is not None:
        return guards.clips.llr(others, clip, axis)
    return float(ProfileBank.of_exemplars(others, axis).score(calibration, clip.embedding, clip.quality)[0][0])
