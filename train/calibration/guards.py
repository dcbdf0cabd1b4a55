"""The guards of a model fitted on what it heard: no voice, a second voice, a stranger's clip.

Each is a logistic regression whose limit is set on corpora, and kinds of sounds, that its weights were not fitted on:
so much of what is good may be refused, and as much of what is bad is found as that allows.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration, EmotionAxis, Term
from emoinv_edge.guards import Guards
from emoinv_edge.profiles import Exemplar
from emoinv_edge.scoring import ProfileBank
from emoinv_edge.speakers import ClipsTest, WindowsTest, clip_evidence, side_cosines
from emoinv_edge.voice import MEASURES, VoiceTest, measures

from .guard_speech import Heard
from .weights import logistic

__all__ = ["Fitted", "fit_guards"]

OWN_AS_NO_VOICE = 0.005  # of one's own speech that may be refused as no voice
ONE_AS_TWO = 0.02  # of recordings of one voice that may be taken for two
# Of these so many change their emotion within: at an enrolment and at the door, where both parts must fit the profile.
MOVED_WITHIN = {"windows": 0.05, "door": 0.1}
OWN_AS_STRANGER = 0.03  # of the owner's clips in other emotions that may be doubted
# Of the owner's accepts, that the least cosine and the least sum may cost. The sum's voices are scored by tests that
# never met their corpus: of those that the model met it costs a fifth.
COSINE_LOST, SUM_LOST = 0.005, 0.02
COSINE_WEIGHT = 18.0  # of the cosine beside a voice's score: a cosine higher by 0.1 makes up for 1.8
LOOSE_FAR, USUAL_FAR = 0.05, 0.01  # the rates at which these are counted: of the cosine, and of the sum
CLIP_COLUMNS = (
    "cosine", "f0_above", "f0_below", "norm_above", "norm_below", "emotion_shift", "test_seconds", "enrol_seconds",
    "coherence", "nearest",
)  # fmt: skip
RIDGE = 1e-4  # on the weights of standardised columns
VOICE_RIDGE = 3e-3  # the same where the columns are as many as an embedding's numbers
FOLDS = 10
DRAWS = 5  # enrolments of each speaker and kind
STRANGE_EMOTIONS = 0.1  # of strangers' clips that are not neutral
LEAST_OTHERS, MOST_OTHERS = 2, 5  # clips of an enrolment that another is tried against
PROFILE = 4  # neutral clips of the profile at the door
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)

Matrix = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """Guards, and what they find and mistake on corpora left out: name of a figure -> corpus or kind -> share."""

    guards: Guards
    figures: dict[str, dict[str, float]]


def fit_guards(heard: Sequence[Heard], calibration: Calibration, window_s: float, hop_s: float) -> Fitted:
    """Fit all guards of a model.

    Parameters
    ----------
    heard : sequence of Heard
        Clips of two corpora or more, sounds, and recordings of two halves.
    calibration : Calibration
        Of the same model.
    window_s, hop_s : float
        Of the windows that its graph gives.

    Raises
    ------
    ValueError
        If a kind is missing.
    """
    clips = [each for each in heard if each.kind in ("clean", "noisy", "whispered")]
    sounds = [each for each in heard if each.kind in ("recorded", "made")]
    halves = [each for each in heard if each.kind in ("one", "two") and each.windows is not None]
    if len({each.corpus for each in clips}) < 2 or not sounds or not halves:
        raise ValueError("expected clips of two corpora or more, sounds, and recordings of two halves; name more sets")
    clean = [each for each in clips if each.kind == "clean"]
    voice, margins, voice_figures = _fit_voice(clips, sounds)
    windows, windows_figures = _fit_windows(halves, window_s, hop_s)
    door, door_figures = _fit_windows(halves, window_s, hop_s, _voices(clean))
    test, clips_figures = _fit_clips(clean, calibration)
    kept = [margin for each, margin in zip(clips, margins, strict=True) if each.kind == "clean"]
    least_cosine, least_sum = _least(clean, kept, calibration)
    corpora = ", ".join(sorted({each.corpus for each in clips}))
    folders = ", ".join(sorted({each.corpus for each in sounds if each.corpus}))
    source = f"speech of {corpora}; sounds of {folders} and made by rule"
    guards = Guards(voice, windows, door, test, least_cosine, COSINE_WEIGHT, least_sum, source)
    return Fitted(guards, voice_figures | windows_figures | door_figures | clips_figures)


def _weights(target: Flags, groups: Sequence[str]) -> Matrix:
    """Both classes weigh a half, the groups of a class the same."""
    weight = np.zeros(len(target))
    labels = np.array(groups)
    for kind in (True, False):
        found = np.unique(labels[target == kind])
        for group in found:
            rows = (target == kind) & (labels == group)
            weight[rows] = 0.5 / len(found) / rows.sum()
    return weight


def _regression(values: Matrix, target: Flags, weight: Matrix, ridge: float = RIDGE) -> tuple[Matrix, float]:
    """Weights of the columns and bias of least logistic loss."""
    weight = weight / weight.sum()
    centre = weight @ values
    scale = np.sqrt(weight @ np.square(values - centre)) + 1e-9
    x = np.hstack(((values - centre) / scale, np.ones((len(values), 1))))
    found = logistic(x, target, weight, np.append(np.full(values.shape[1], ridge), 1e-9))
    slopes = found[:-1] / scale
    return slopes, float(found[-1] - slopes @ centre)


def _left_out(values: Matrix, target: Flags, weight: Matrix, folds: NDArray[np.int64], ridge: float = RIDGE) -> Matrix:
    """The score of every row by the regression on the other folds."""
    scores = np.zeros(len(values))
    for fold in np.unique(folds):
        rest = folds != fold
        slopes, bias = _regression(values[rest], target[rest], weight[rest], ridge)
        scores[~rest] = values[~rest] @ slopes + bias
    return scores


def _folds(groups: Sequence[str]) -> NDArray[np.int64]:
    """The fold of every row: groups stay whole."""
    names = sorted(set(groups))
    return np.array([names.index(group) % FOLDS for group in groups])


def _shares(name: str, flags: Flags, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """The share of rows whose flag is set, by label and for all; nothing where there is no row."""
    if not len(flags):
        return {}
    found = {label: float(np.mean(flags[np.array(labels) == label])) for label in sorted(set(labels))}
    return {name: found | {"all": float(np.mean(flags))}}


def _fit_voice(
    clips: Sequence[Heard], sounds: Sequence[Heard]
) -> tuple[VoiceTest, Matrix, dict[str, dict[str, float]]]:
    rows = [*clips, *sounds]
    target = np.array([True] * len(clips) + [False] * len(sounds))
    found = [measures(each.quality) for each in rows]
    columns = np.array([[each[name] for name in MEASURES] for each in found])
    ranges = np.quantile(columns, (0.001, 0.999), axis=0)
    values = np.hstack((np.stack([each.vector for each in rows]).astype(np.float64), np.clip(columns, *ranges)))
    weight = _weights(target, ["speech"] * len(clips) + [each.kind for each in sounds])
    folds = _folds([each.corpus if row < len(clips) else each.speaker for row, each in enumerate(rows)])
    scores = _left_out(values, target, weight, folds, VOICE_RIDGE)
    limit = float(np.quantile(scores[: len(clips)][[each.kind == "clean" for each in clips]], OWN_AS_NO_VOICE))
    slopes, bias = _regression(values, target, weight, VOICE_RIDGE)
    dim = len(slopes) - len(MEASURES)
    terms = tuple(
        Term(name, float(slope), float(low), float(high))
        for name, slope, low, high in zip(MEASURES, slopes[dim:], *ranges, strict=True)
    )
    passed = scores >= limit
    figures: dict[str, dict[str, float]] = {}
    for kind in ("clean", "noisy", "whispered"):
        own = np.array([each.kind == kind for each in clips])
        labels = [each.corpus for each, is_own in zip(clips, own, strict=True) if is_own]
        figures |= _shares(f"{kind} speech refused as no voice", ~passed[: len(clips)][own], labels)
    for kind in ("recorded", "made"):
        own = np.array([each.kind == kind for each in sounds])
        labels = [each.speaker for each, is_own in zip(sounds, own, strict=True) if is_own]
        figures |= _shares(f"{kind} sounds taken for a voice", passed[len(clips) :][own], labels)
    test = VoiceTest(slopes[:dim].astype("<f4").tobytes(), terms, bias - limit)
    return test, scores[: len(clips)] - limit, figures


def _voices(clips: Sequence[Heard]) -> dict[tuple[str, str], NDArray[np.float32]]:
    """The mean embedding of a few neutral clips of every speaker, as a profile's."""
    found: dict[tuple[str, str], list[NDArray[np.float32]]] = {}
    for clip in clips:
        if clip.emotion in ("", "neutral"):
            found.setdefault((clip.corpus, clip.speaker), []).append(clip.vector)
    means = {key: np.mean(own[:PROFILE], axis=0) for key, own in found.items() if len(own) >= PROFILE}
    return {key: np.asarray(mean / np.linalg.norm(mean), np.float32) for key, mean in means.items()}


def _fit_windows(
    halves: Sequence[Heard],
    window_s: float,
    hop_s: float,
    voices: dict[tuple[str, str], NDArray[np.float32]] | None = None,
) -> tuple[WindowsTest, dict[str, dict[str, float]]]:
    """The test of one recording by itself, or, with `voices`, of one that the first voice's profile would accept."""
    door = voices is not None
    gap = WindowsTest(window_s, hop_s, 0.0, -1.0, 0.2, 0.0).gap
    rows, sides = [], []
    for each in halves:
        voice = None if voices is None else voices.get((each.corpus, each.speaker))
        assert each.windows is not None
        stretches, cosines, fits = side_cosines(each.windows, gap, voice)
        if len(stretches) and (voice is not None or not door):
            lesser = np.log(np.minimum(stretches[:, 1] - stretches[:, 0] + 1, stretches[:, 2]))
            length = np.full(len(cosines), math.log(len(each.windows)))
            sides.append(np.stack((cosines, lesser, length, fits)[: 4 if door else 3], axis=1))
            rows.append(each)
    target = np.array([each.kind == "two" for each in rows])
    groups = [f"{each.corpus} {each.side_s:g} {each.emotion}" for each in rows]
    weight, folds = _weights(target, groups), _folds([each.corpus for each in rows])

    def worst(slopes: Matrix) -> Matrix:
        return np.stack([each[int(np.argmax(each @ slopes))] for each in sides])

    def regression(slopes: Matrix, pick: Flags) -> tuple[Matrix, float]:
        found, bias = _regression(worst(slopes)[pick], target[pick], weight[pick])
        found[0], found[3:] = min(found[0], -1e-3), np.minimum(found[3:], 0.0)
        return found, bias

    everything = np.ones(len(rows), bool)
    slopes = np.array([-1.0, 0.2, 0.0, -1.0])[: 4 if door else 3]
    for _ in range(4):  # the stretch depends on the weights, and these on the stretches
        slopes, bias = regression(slopes, everything)
    scores = np.zeros(len(rows))
    for fold in np.unique(folds):
        own = slopes
        for _ in range(3):
            own, own_bias = regression(own, folds != fold)
        scores[folds == fold] = worst(own)[folds == fold] @ own + own_bias
    limit = _one_voice_limit(rows, scores, MOVED_WITHIN["door" if door else "windows"])
    figures = _found(rows, scores >= limit, " at the door" if door else "")
    return WindowsTest(window_s, hop_s, bias - limit, *(float(slope) for slope in slopes)), figures


def _one_voice_limit(rows: Sequence[Heard], scores: Matrix, moved_within: float) -> float:
    """The score that so few recordings of one voice reach, if this share of them changes the emotion within."""
    one = np.array([each.kind == "one" for each in rows])
    moved = np.array([each.emotion != "" for each in rows])
    weight = np.zeros(len(rows))
    for kind, share in ((moved, moved_within), (~moved, 1.0 - moved_within)):
        weight[one & kind] = share / max(1, int((one & kind).sum()))
    return _weighted_quantile(scores[one], weight[one], 1.0 - ONE_AS_TWO)


def _found(rows: Sequence[Heard], found: Flags, where: str) -> dict[str, dict[str, float]]:
    figures: dict[str, dict[str, float]] = {}
    for kind, what in (("one", "one voice taken for two"), ("two", "two voices found")):
        for side_s in sorted({each.side_s for each in rows}):
            for emotion in ("", "mixed"):
                pick = np.array([(each.kind, each.side_s, each.emotion) == (kind, side_s, emotion) for each in rows])
                if pick.any():
                    labels = [each.corpus for each, held in zip(rows, pick, strict=True) if held]
                    several = ", several emotions" if emotion else ""
                    figures |= _shares(f"{what}{where}, {side_s:g} + {side_s:g} s{several}", found[pick], labels)
    return figures


def _weighted_quantile(values: Matrix, weight: Matrix, share: float) -> float:
    """The least value that so much of the weight lies at or below."""
    order = np.argsort(values)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(np.nextafter(values[order][min(int(np.searchsorted(reached, share)), len(values) - 1)], np.inf))


@dataclasses.dataclass(frozen=True, slots=True)
class _Trial:
    """A clip tried against others of a speaker: ``own`` in another emotion or neutral, or a ``stranger``'s."""

    kind: str
    emotion: str
    others: list[Exemplar]
    clip: Exemplar
    corpus: str
    source: Heard  # of the clip


def _exemplar(heard: Heard) -> Exemplar:
    return Exemplar(heard.vector, heard.quality, NOW)


def _trials(clips: Sequence[Heard], least_others: int = LEAST_OTHERS, seed: int = 0) -> list[_Trial]:
    """Enrolments of some clips, neutral or in any emotion, each tried with further clips of the owner and strangers."""
    speakers: dict[tuple[str, str], list[Heard]] = {}
    for clip in clips:
        if clip.quality.net_speech_s >= 1.0:
            speakers.setdefault((clip.corpus, clip.speaker), []).append(clip)
    genders = {key: _gender(own) for key, own in speakers.items()}
    trials = []
    for number, (key, own) in enumerate(sorted(speakers.items())):
        rng = np.random.default_rng((seed, number))
        strange = [
            clip
            for other, theirs in speakers.items()
            if other != key and other[0] == key[0] and genders[other] == genders[key]
            for clip in theirs
        ]
        for draw in range(2 * DRAWS):
            usable = [clip for clip in own if draw >= DRAWS or clip.emotion in ("", "neutral")]
            count = int(rng.integers(least_others, MOST_OTHERS + 1))
            order = [usable[i] for i in rng.permutation(len(usable))]
            others, rest = order[:count], [clip for clip in own if all(clip is not held for held in order[:count])]
            if len(others) < count:
                continue
            neutral = [clip for clip in rest if clip.emotion in ("", "neutral")]
            moved = [clip for clip in rest if clip.emotion not in ("", "neutral")]
            emotional = rng.random() < STRANGE_EMOTIONS
            theirs = [clip for clip in strange if emotional or clip.emotion in ("", "neutral")]
            for kind, pool in (("own", neutral), ("own", moved), ("stranger", theirs)):
                if pool:
                    drawn = pool[int(rng.integers(len(pool)))]
                    held = [_exemplar(clip) for clip in others]
                    trials.append(_Trial(kind, drawn.emotion, held, _exemplar(drawn), key[0], drawn))
    return trials


def _gender(own: Sequence[Heard]) -> str:
    pitches = [clip.quality.log_f0_mean for clip in own if clip.quality.log_f0_mean is not None]
    low = bool(pitches) and float(np.median(pitches)) < math.log(165.0)
    return own[0].gender or ("male" if low else "female")


def _fit_clips(clips: Sequence[Heard], calibration: Calibration) -> tuple[ClipsTest, dict[str, dict[str, float]]]:
    axis = calibration.emotion_axis
    trials = _trials(clips)
    usual = float(np.mean([_coherence(trial, axis) for trial in trials if len(trial.others) > 1]))
    names = [name for name in CLIP_COLUMNS if axis is not None or name != "emotion_shift"]
    found = [clip_evidence(trial.others, trial.clip, axis, usual) for trial in trials]
    values = np.array([[each[name] for name in names] for each in found])
    ranges = np.quantile(values, (0.002, 0.998), axis=0)
    values = np.clip(values, *ranges)
    target = np.array([trial.kind == "own" for trial in trials])
    moved = np.array([trial.emotion not in ("", "neutral") for trial in trials])
    weight = _weights(target, [trial.corpus for trial in trials])
    scores = _left_out(values, target, weight, _folds([trial.corpus for trial in trials]))
    least = float(np.quantile(scores[target & moved], OWN_AS_STRANGER))
    slopes, bias = _regression(values, target, weight)
    terms = tuple(
        Term(name, float(slope), float(low), float(high))
        for name, slope, low, high in zip(names, slopes, *ranges, strict=True)
    )
    figures: dict[str, dict[str, float]] = {}
    several = np.array([len(trial.others) > 2 for trial in trials])
    for what, rows in (
        ("own emotional clips doubted", target & moved),
        ("own neutral clips doubted", target & ~moved),
        ("strangers' clips found", ~target),
        ("strangers' neutral clips found among three or more others", ~target & ~moved & several),
        ("own emotional clips doubted among three or more others", target & moved & several),
    ):
        labels = [trial.corpus for trial, held in zip(trials, rows, strict=True) if held]
        figures |= _shares(what, scores[rows] < least, labels)
    return ClipsTest(bias, terms, usual, least), figures


def _coherence(trial: _Trial, axis: EmotionAxis | None) -> float:
    return clip_evidence(trial.others, trial.clip, axis, 0.0)["coherence"]


def _least(clips: Sequence[Heard], margins: Sequence[float], calibration: Calibration) -> tuple[float, float]:
    """The cosine, and the sum of it and the voice's score, that hardly any accepted owner lies below.

    `margins` are the voice's scores of the clips, each by the other corpora.
    """
    margin = {id(clip): value for clip, value in zip(clips, margins, strict=True)}
    loose, usual = (calibration.threshold(far, extrapolate=True).llr for far in (LOOSE_FAR, USUAL_FAR))
    cosines, sums = [], []
    for trial in _trials(clips, least_others=1):
        if trial.kind == "own":
            bank = ProfileBank.of_exemplars(trial.others, calibration.emotion_axis)
            llrs, found = bank.score(calibration, trial.clip.embedding, trial.clip.quality)
            if llrs[0] >= loose:
                cosines.append(float(found[0]))
            if llrs[0] >= usual:
                sums.append(margin[id(trial.source)] + COSINE_WEIGHT * float(found[0]))
    if not sums:
        raise ValueError("expected owners whom the calibration accepts, got none; calibrate the model first")
    return float(np.quantile(cosines, COSINE_LOST)), float(np.quantile(sums, SUM_LOST))
