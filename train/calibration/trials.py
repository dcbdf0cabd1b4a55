"""Trials of development speech: profiles of several designs, tried by the clips that no profile holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.calibration import BANDS, TERMS, EmotionAxis
from emoinv_edge.scoring import ProfileBank

from ..evaluation.clips import Clip, is_neutral
from ..evaluation.metrics import eer
from ..evaluation.protocols import ENROL_CLIPS, Trials, cross
from .channels import CONDITIONS
from .speech import DevelopmentSpeech

__all__ = ["DESIGNS", "Evidence", "channel_trials", "draw_trials", "teaching_trials", "with_axis"]

DESIGNS = ("single", "neutral", "varied")
TESTS_PER_SPEAKER = 60
DRAWS = 4  # of the clips that make the profiles, for the weights: a corpus of few speakers has few otherwise
# A corpus in which even neutral voices are confused more often than this, with four clips enrolled, has labels
# or a channel too poor to fit weights on; its speakers still count as impostors.
LEGIBLE_EER = 0.12
# Where a corpus does not give the gender, speakers are parted by the pitch of their neutral clips: trials
# across genders would be easy, and would teach that any difference of pitch means another person.
GENDER_SPLIT_HZ = 165.0


@dataclasses.dataclass(frozen=True, slots=True)
class Evidence:
    """Trials of one corpus and one design of profiles, with the evidence that a calibration may weigh."""

    corpus: str
    design: str
    trials: Trials
    terms: Mapping[str, NDArray[np.float64]]  # of `TERMS` -> (trials,)
    owner: NDArray[np.int32]  # speaker of the profile, (trials,)
    speaker: NDArray[np.int32]  # speaker of the test, (trials,)
    emotional: NDArray[np.bool_]  # the test is not neutral, (trials,)
    condition: NDArray[np.str_]  # of `CONDITIONS`, in which the test was heard, (trials,)
    names: tuple[str, ...]  # of the speakers, by their number
    centroids: NDArray[np.float32]  # (profiles, embedding_dim): the mean of each profile's exemplars, of unit norm
    axis: EmotionAxis | None = None  # behind the term ``emotion_shift``, which is 0 without

    @property
    def noisy(self) -> NDArray[np.bool_]:
        """Whether the test is a clip with noise added, (trials,)."""
        return np.asarray(self.condition == "noise")

    @property
    def target(self) -> NDArray[np.bool_]:
        """Whether both sides are one speaker, (trials,)."""
        return self.trials.target

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Evidence:
        """Some of the trials."""
        return dataclasses.replace(
            self,
            trials=self.trials.take(index),
            terms={name: values[index] for name, values in self.terms.items()},
            owner=self.owner[index],
            speaker=self.speaker[index],
            emotional=self.emotional[index],
            condition=self.condition[index],
        )


def _choose(clips: Sequence[Clip], own: NDArray[np.intp], design: str, rng: np.random.Generator) -> list[int]:
    """The clips of one speaker that make a profile of `design`; empty if there are too few."""
    neutral = [int(i) for i in own if is_neutral(clips[i])]
    if design == "single":
        return [int(rng.choice(neutral))] if neutral else []
    if design == "neutral":
        return [int(i) for i in rng.permutation(neutral)[:ENROL_CLIPS]] if len(neutral) >= 2 else []
    by_emotion: dict[str, int] = {}
    for i in rng.permutation(own):
        if not is_neutral(clips[i]):
            by_emotion.setdefault(clips[i].emotion, int(i))
    others = list(by_emotion.values())
    return [neutral[0], *others[: ENROL_CLIPS - 1]] if neutral and others else []


def draw_trials(speech: DevelopmentSpeech, seed: int = 0) -> list[Evidence]:
    """All trials within each corpus, for each design of profiles.

    ``single`` is one neutral utterance, ``neutral`` four, ``varied`` one neutral and up to three other emotions.
    A clip that any of its speaker's profiles holds is never a test, so that the designs are tried
    by the same clips; nor is what it sounds like in noise. Every other copy in noise is a test beside its clip.

    Raises
    ------
    ValueError
        If no corpus has two speakers with several clips each.
    """
    rng = np.random.default_rng((seed, 7))
    clips = speech.clips
    copies = speech.copies()
    heard_again: dict[int, list[int]] = {}
    for copy, made_of in copies.items():
        if speech.condition(copy) == "noise":
            heard_again.setdefault(made_of, []).append(copy)
    out = []
    for corpus in sorted({clip.corpus for clip in clips}):
        by_speaker: dict[str, list[int]] = {}
        for i, clip in enumerate(clips):
            if clip.corpus == corpus and i not in copies:
                by_speaker.setdefault(clip.speaker, []).append(i)
        profiles: dict[str, dict[str, list[int]]] = {design: {} for design in DESIGNS}
        tests: list[int] = []
        for name, found in sorted(by_speaker.items()):
            own = np.array(found)
            taken: set[int] = set()
            for design in DESIGNS:
                picked = _choose(clips, own, design, rng)
                if picked:
                    profiles[design][name] = picked
                    taken.update(picked)
            # A speaker of few clips is an impostor at least; a clip never meets the profile that holds it.
            free = [int(i) for i in own if int(i) not in taken] or [int(own[-1])]
            drawn = [int(i) for i in rng.permutation(free)[:TESTS_PER_SPEAKER]]
            tests += [test for i in drawn for test in (i, *heard_again.get(i, ()))]
        for design in DESIGNS:
            if len(profiles[design]) > 1:
                out.append(_evidence(speech, corpus, design, profiles[design], tests, sorted(by_speaker)))
    if not out:
        raise ValueError("expected corpora with two speakers or more who have several clips each; got none")
    return out


def channel_trials(speech: DevelopmentSpeech) -> list[Evidence]:
    """Trials within each corpus of what was heard through all channels: enrolled in each condition, tried in all.

    The design of each is the condition that its profiles were enrolled in, of `CONDITIONS`. Empty where nothing was
    heard through channels.
    """
    out = []
    corpora = sorted({clip.corpus for clip, role in zip(speech.clips, speech.roles, strict=False) if role})
    for corpus in corpora:
        chosen: dict[str, dict[str, list[int]]] = {condition: {} for condition in CONDITIONS}
        tests = []
        for i, (clip, role) in enumerate(zip(speech.clips, speech.roles, strict=True)):
            if clip.corpus == corpus and role == "test":
                tests.append(i)
            elif clip.corpus == corpus and role == "profile":
                chosen[speech.condition(i)].setdefault(clip.speaker, []).append(i)
        names = sorted({speech.clips[i].speaker for i in tests} | {name for own in chosen.values() for name in own})
        for condition, profiles in chosen.items():
            if len(profiles) > 1 and tests:
                out.append(_evidence(speech, corpus, condition, dict(sorted(profiles.items())), tests, names))
    return out


def _genders(speech: DevelopmentSpeech, corpus: str) -> dict[str, str]:
    """Gender of each speaker, from the corpus or else from the pitch."""
    given: dict[str, str] = {}
    pitch: dict[str, list[tuple[bool, float]]] = {}
    copies = speech.copies()
    for i, (clip, quality) in enumerate(zip(speech.clips, speech.qualities, strict=True)):
        if clip.corpus == corpus and i not in copies:
            given[clip.speaker] = clip.gender
            if quality.log_f0_mean is not None:
                pitch.setdefault(clip.speaker, []).append((is_neutral(clip), quality.log_f0_mean))
    for speaker, gender in given.items():
        if not gender:
            all_values = pitch.get(speaker, [])
            values = [value for neutral, value in all_values if neutral] or [value for _, value in all_values]
            high = bool(values) and float(np.median(values)) > math.log(GENDER_SPLIT_HZ)
            given[speaker] = "high" if high else "low"
    return given


def _evidence(
    speech: DevelopmentSpeech,
    corpus: str,
    design: str,
    chosen: Mapping[str, Sequence[int]],
    tests: Sequence[int],
    speakers: Sequence[str],
) -> Evidence:
    """The trials of one design: `chosen` holds the clips of each speaker's profile, `tests` the clips that try them."""
    clips, copies = speech.clips, speech.copies()
    number = {name: k for k, name in enumerate(speakers)}
    profiles = list(chosen.values())
    gender = _genders(speech, corpus)
    trials = cross(clips, profiles, tests, [gender.get(clip.speaker, "") for clip in clips])
    held = {(row, copies.get(i, i)) for row, profile in enumerate(profiles) for i in profile}
    made_of = [copies.get(i, i) for i in trials.test.tolist()]
    trials = trials.take(np.array([key not in held for key in zip(trials.enrol.tolist(), made_of, strict=True)], bool))
    index = [i for profile in profiles for i in profile]
    qualities = [speech.qualities[i] for i in index]
    bank = ProfileBank.from_arrays(list(chosen), speech.embeddings[index], qualities, list(map(len, profiles)))
    tried, row = np.unique(trials.test, return_inverse=True)
    found = [bank.evidence(speech.embeddings[i], speech.qualities[i]) for i in tried]
    means = np.stack([speech.embeddings[list(profile)].mean(axis=0) for profile in profiles])
    owners = np.array([number[name] for name in chosen], np.int32)
    return Evidence(
        corpus=corpus,
        design=design,
        trials=trials,
        terms={name: np.stack([each[name] for each in found])[row, trials.enrol] for name in (*TERMS, *BANDS)},
        owner=owners[trials.enrol],
        speaker=np.array([number[clips[i].speaker] for i in trials.test], np.int32),
        emotional=np.array([not is_neutral(clips[i]) for i in trials.test], bool),
        condition=np.array([speech.condition(int(i)) for i in trials.test], str),
        names=tuple(speakers),
        centroids=np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6), np.float32),
    )


def with_axis(found: Iterable[Evidence], speech: DevelopmentSpeech, axis: EmotionAxis) -> list[Evidence]:
    """The same trials, of `speech`, with the term ``emotion_shift`` along this axis."""
    vector = axis.array()
    along = speech.embeddings @ vector
    out = []
    for each in found:
        shift = along[each.trials.test] - (each.centroids @ vector)[each.trials.enrol]
        terms = {**each.terms, "emotion_shift": shift.astype(np.float64)}
        out.append(dataclasses.replace(each, terms=terms, axis=axis))
    return out


def teaching_trials(speech: DevelopmentSpeech) -> list[Evidence]:
    """The trials to fit weights on: of the corpora fit for it, with several draws of the profiles.

    Raises
    ------
    ValueError
        If no corpus is fit for it.
    """
    drawn = [each for seed in range(DRAWS) for each in draw_trials(speech, seed)]
    good = _legible(drawn)
    if not good:
        raise ValueError("no corpus of several emotions whose neutral voices the cosine separates; prepare more speech")
    return [each for each in drawn if each.corpus in good]


def _legible(found: Sequence[Evidence]) -> set[str]:
    """The corpora to fit weights on: of several emotions, their neutral voices separated by the cosine."""
    errors: dict[str, list[float]] = {}
    for each in found:
        some, emotional = each.take(~each.emotional & ~each.noisy), each.take(each.emotional)
        if each.design != "neutral" or not emotional.target.any() or not some.target.any() or some.target.all():
            continue
        cosines = some.terms["cosine"]
        errors.setdefault(each.corpus, []).append(eer(cosines[some.target], cosines[~some.target]))
    return {corpus for corpus, rates in errors.items() if np.mean(rates) <= LEGIBLE_EER}
