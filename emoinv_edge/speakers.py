"""One speaker or two: among the windows of a recording, and among the clips of an enrolment.

Within a recording every stretch is tried against the rest: the cosine of the two mean embeddings, less what is
expected of one voice whose emotion changes, given how much of it each side is. Of windows that overlap, those that
lie astride a border belong to neither side.

Among clips each is tried against all the others, by the evidence that verification weighs and by how well the others
hold together; the one that fits least is left out and the rest is tried again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import TERMS, EmotionAxis, Term
from .errors import ModelFormatError
from .fields import is_finite, read_fields, read_list, read_number
from .scoring import ProfileBank

if TYPE_CHECKING:
    from .profiles import Exemplar

__all__ = [
    "CLIP_TERMS",
    "Change",
    "ClipsTest",
    "WindowsTest",
    "clip_evidence",
    "odd_ones",
    "read_clips_test",
    "read_term",
    "read_windows_test",
    "side_cosines",
]

# Of the other clips: the mean cosine of two of them, and the cosine of the nearest one with the clip in question.
COHERENCE, NEAREST = "coherence", "nearest"
CLIP_TERMS = (*TERMS, COHERENCE, NEAREST)
MOST_STRETCHED = 64  # windows that every stretch of is tried: the work grows with their square
SHARED_S = 0.1  # of speech that two windows may share and still count as apart


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """The stretch of a recording that fits the rest of it least.

    Parameters
    ----------
    first, last : int
        The windows of the stretch, the last one included.
    score : float
        LLR for another person there than in the rest, less the LLR from which on they count as
        two voices, so that at 0 and above they do.
    """

    first: int
    last: int
    score: float


@dataclasses.dataclass(frozen=True, slots=True)
class WindowsTest:
    """Whether the windows of one recording are of one speaker.

    Parameters
    ----------
    window_s, hop_s : float
        Seconds of speech in one window, and from the start of one to the start of the next.
    bias, cosine, lesser, length, fit : float
        The score of a stretch: ``bias + cosine * (cosine of the two sides) + lesser * ln(windows of the lesser side)
        + length * ln(windows in all) + fit * (the lower of the two sides' cosines with the profile)``; `fit` is 0
        in a test that knows no profile.

    Raises
    ------
    ModelFormatError
        If a number is not finite, or out of range.
    """

    window_s: float
    hop_s: float
    bias: float
    cosine: float
    lesser: float
    length: float
    fit: float = 0.0

    def __post_init__(self) -> None:
        values = dataclasses.asdict(self)
        _require(all(map(is_finite, values.values())), f"the windows' test should hold finite numbers, got {values}")
        _require(
            0.0 < self.hop_s <= self.window_s, f"the windows' test should have 0 < hop_s <= window_s, got {values}"
        )
        _require(self.cosine < 0.0, f"the windows' cosine should weigh less than 0, got {self.cosine!r}")
        _require(self.fit <= 0.0, f"the windows' fit should weigh 0 or less, got {self.fit!r}")

    def find(self, windows: NDArray[np.float32], voice: NDArray[np.float32] | None = None) -> Change | None:
        """The stretch that fits the rest least; None where there is no rest, as in less than about 3 s of speech.

        Parameters
        ----------
        windows : ndarray, shape (windows, embedding_dim), float32 of unit norm
            In the order of time, one every `hop_s`.
        voice : ndarray, shape (embedding_dim,), float32 of unit norm, optional
            The profile's mean embedding, where the test weighs how well both sides fit it.
        """
        group = -(-len(windows) // MOST_STRETCHED)  # of a long recording neighbours go together
        edges = np.arange(0, len(windows), group)
        grouped = windows if group == 1 else np.add.reduceat(windows, edges, axis=0)
        stretches, cosines, fits = side_cosines(grouped, (self.gap + group - 2) // group + 1, voice)
        if not len(stretches):
            return None
        first, last, rest = stretches.T
        lesser = np.log(group * np.minimum(last - first + 1, rest))
        scores = self.bias + self.cosine * cosines + self.lesser * lesser + self.length * math.log(len(windows))
        scores += self.fit * fits
        best = int(np.argmax(scores))
        end = min(int(last[best] + 1) * group, len(windows))
        return Change(int(first[best]) * group, end - 1, float(scores[best]))

    @property
    def gap(self) -> int:
        """Hops from one window to the next that counts as apart from it."""
        return max(1, math.ceil((self.window_s - SHARED_S) / self.hop_s - 1e-9))


def side_cosines(
    windows: NDArray[np.float32], gap: int, voice: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Every stretch of windows, the cosine of its mean with that of the rest, and the lower of both with a voice.

    Parameters
    ----------
    windows : ndarray, shape (windows, embedding_dim), of unit norm
    gap : int
        Windows less than so many apart overlap.
    voice : ndarray, shape (embedding_dim,), of unit norm, optional

    Returns
    -------
    stretches : ndarray, shape (stretches, 3), int64
        First window, last window, and how many windows the rest has.
    cosines, fits : ndarray, shape (stretches,), float64
        `fits` are 0 without a voice.
    """
    count = len(windows)
    first, last = np.triu_indices(count)
    before, after = np.maximum(0, first - gap + 1), np.minimum(count, last + gap)
    rest = before + count - after
    kept = rest > 0
    first, last, before, after, rest = (values[kept] for values in (first, last, before, after, rest))
    sums = np.concatenate((np.zeros((1, windows.shape[1])), np.cumsum(windows, axis=0, dtype=np.float64)))
    inside = sums[last + 1] - sums[first]
    outside = sums[before] + sums[count] - sums[after]
    inside /= np.maximum(np.linalg.norm(inside, axis=1, keepdims=True), 1e-9)
    outside /= np.maximum(np.linalg.norm(outside, axis=1, keepdims=True), 1e-9)
    cosines = np.einsum("ij,ij->i", inside, outside)
    fits = np.zeros(len(first)) if voice is None else np.minimum(inside @ voice, outside @ voice)
    return np.stack((first, last, rest), axis=1).astype(np.int64), cosines, np.asarray(fits, np.float64)


def clip_evidence(
    others: Sequence[Exemplar], clip: Exemplar, axis: EmotionAxis | None, coherence: float
) -> dict[str, float]:
    """What speaks for and against a clip being of the speaker of the others, by the names of `CLIP_TERMS`.

    Parameters
    ----------
    others : sequence of Exemplar
        One or more, in any order.
    clip : Exemplar
    axis : EmotionAxis or None
        Of the model's calibration.
    coherence : float
        Stands for that of the others where there is only one.
    """
    bank = ProfileBank.of_exemplars(others, axis)
    found = {name: float(values[0]) for name, values in bank.evidence(clip.embedding, clip.quality, TERMS).items()}
    vectors = np.stack([other.embedding for other in others]).astype(np.float64)
    count = len(others)
    if count > 1:
        coherence = (float(np.square(np.linalg.norm(vectors.sum(axis=0)))) - count) / (count * (count - 1))
    return found | {COHERENCE: coherence, NEAREST: float((vectors @ clip.embedding).max())}


@dataclasses.dataclass(frozen=True, slots=True)
class ClipsTest:
    """Whether a clip is of the speaker of others.

    Parameters
    ----------
    bias : float
    terms : tuple of Term
        What `CLIP_TERMS` weigh; ``cosine`` among them, with a weight above 0.
    coherence : float
        Usual cosine of two clips of one speaker: stands in where there is only one other clip.
    least : float
        LLR below which a clip is doubted.

    Raises
    ------
    ModelFormatError
        If a number is not finite, or a term unknown or given twice.
    """

    bias: float
    terms: tuple[Term, ...]
    coherence: float
    least: float

    def __post_init__(self) -> None:
        numbers = (self.bias, self.coherence, self.least)
        _require(all(map(is_finite, numbers)), f"the clips' test should hold finite numbers, got {numbers}")
        names = [term.name for term in self.terms]
        _require(len(set(names)) == len(names), f"each term of the clips' test should appear once, got {names}")
        _require("cosine" in names, f"the term 'cosine' is missing from {names}")
        for term in self.terms:
            _require(term.name in CLIP_TERMS, f"term {term.name!r} is unknown, expected one of {CLIP_TERMS}")
            values = (term.weight, term.low, term.high)
            _require(all(map(is_finite, values)), f"term {term.name!r} should hold finite numbers, got {values}")
            _require(term.low <= term.high, f"term {term.name!r} should have low <= high, got {values}")

    def llr(self, others: Sequence[Exemplar], clip: Exemplar, axis: EmotionAxis | None) -> float:
        """LLR (natural) for one speaker; `others` and `axis` as for `clip_evidence`."""
        found = clip_evidence(others, clip, axis, self.coherence)
        return self.bias + sum(term.weight * min(max(found[term.name], term.low), term.high) for term in self.terms)


def odd_ones(
    clips: Sequence[Exemplar], llr: Callable[[Sequence[Exemplar], Exemplar], float], least: float
) -> tuple[dict[int, float], list[float]]:
    """Which clips are not of the speaker of most: all are tried against all others, the worst leaves, and again.

    The order of the clips does not matter, but where two are left that doubt each other: then the later one leaves.

    Parameters
    ----------
    clips : sequence of Exemplar
    llr : function of the other clips and of the clip
    least : float
        LLR below which a clip leaves.

    Returns
    -------
    odd : dict from index to LLR
        Of those that left, against those that stayed.
    kept : list of float
        LLR of each clip that stayed, in their order, against the others that stayed; infinite for one alone.
    """
    stay = list(range(len(clips)))
    found: list[float] = []
    while stay:
        found = [llr([clips[k] for k in stay if k != i], clips[i]) if len(stay) > 1 else math.inf for i in stay]
        if len(stay) == 2:  # neither has a majority behind it
            found = [sum(found) / 2.0] * 2
        worst = min(range(len(stay)), key=lambda k: (found[k], -stay[k]))
        if found[worst] >= least:
            break
        del stay[worst]
    odd = {i: llr([clips[k] for k in stay], clips[i]) for i in range(len(clips)) if i not in stay}
    return odd, found


def read_term(entry: Any) -> Term:
    """A term of a JSON object; ValueError where it is anything else."""
    return Term(**read_fields(entry, ("name", "weight", "low", "high"), "term"))


def read_windows_test(values: Any) -> WindowsTest:
    """The test of the fields of a JSON object; ValueError where they are anything else."""
    names = [field.name for field in dataclasses.fields(WindowsTest)]
    fields = read_fields(values, names, "windows")
    return WindowsTest(**{name: read_number(fields[name], name) for name in names})


def read_clips_test(values: Any) -> ClipsTest:
    """The test of the fields of a JSON object; ValueError where they are anything else."""
    fields = read_fields(values, [field.name for field in dataclasses.fields(ClipsTest)], "clips")
    terms = tuple(read_term(entry) for entry in read_list(fields["terms"], "terms"))
    numbers = {name: read_number(fields[name], name) for name in ("bias", "coherence", "least")}
    return ClipsTest(terms=terms, **numbers)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ModelFormatError(
            f"guards: {message}; the file is damaged or foreign, fit the guards again (python -m export guards)"
        )
