"""Fit the calibration of an encoder on development speech: weights by logistic loss, thresholds by false-accept rate.

The speech must be speech that the encoder was not trained on, several corpora of it. From each
speaker three profiles are made (one utterance, four neutral ones, four of different manners); they
are tried by the remaining clips of every speaker of the same gender and corpus. The weights are
learnt from the tests in another mood than neutral, where the cosine needs explaining. Each further
term is kept only where it lowers Cllr on corpora that the weights were not fitted on.

What was measured is in CALIBRATION.md; `python -m export --calibrate SET...` writes the fit into the model file.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.quality import SpeechQuality, measure_quality
from emoinv_edge.scoring import (
    POOLINGS,
    RULE_OF_THREE,
    TERMS,
    Calibration,
    FarTable,
    Moods,
    ProfileBank,
    Term,
    without_shares,
)
from emoinv_edge.vad import speech_only
from emoinv_edge.verifier import unusable

from .augment import add_noise
from .metrics import cllr, eer, frr_at_far, min_cllr
from .noise_and_rooms import read_noises
from .prepare import HELD_OUT, PreparedClip, PreparedSet, held_out_speakers

__all__ = [
    "DESIGNS",
    "GROUPS",
    "DevelopmentSpeech",
    "Trials",
    "at_one_threshold",
    "beside_moods",
    "corpus_by_corpus",
    "fit_calibration",
    "fit_speech",
    "learn_moods",
    "leave_one_corpus_out",
    "left_out_scores",
    "make_trials",
    "measure",
    "mood_directions",
    "noises_of",
    "pink_noise",
    "pooling_table",
    "select_terms",
    "teaching_trials",
    "term_names",
    "term_table",
    "together",
]

DESIGNS = ("single", "neutral", "varied")
ENROL_CLIPS = 4
TESTS_PER_SPEAKER = 60
DRAWS = 4  # of the clips that make the profiles, for the weights: a corpus of few speakers has few otherwise
CLIPS_PER_MOOD = 16  # of a speaker, as many of each emotion, spread over the corpus's order
NONTARGETS_PER_CORPUS = 24000  # of the fit; thresholds use them all
SHRINKAGE = 1e-4  # on the weights of the standardised terms
DIRECTIONS = 24  # of moods, each of which gets its own share; 16 to 64 do about as well (CALIBRATION.md)
AXIS_DIRECTIONS = 8  # the strongest, of which the axis of `mood_shift` is made
AXIS_SHRINKAGE = 3e-4  # on its standardised coordinates
SHARE_SHRINKAGE = 1e-3  # on the shares
NOISE_SNR_DB = (5.0, 25.0)  # below 5 dB a verifier mostly refuses to decide
PRIOR = 0.05  # of the fit: weights for thresholds of few false accepts are learnt where such thresholds lie
# A term must lower the Cllr of unseen corpora by this share on the geometric mean, and harm none by HARM: in
# shares, since a corpus of few errors says as much about a term as one of many.
GAIN = 0.015
HARM = 0.05
JUDGED_SPEAKERS = 8  # a corpus with fewer profiles helps to fit, but is too small to judge
# Nor is a corpus judged on where the cosine alone leaves so little: a handful of trials makes its Cllr.
EASY_CLLR = 0.05
RATES = (0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.002, 0.001)
NUM_PROFILES = (1, 2, 4, 8, 16)
# A corpus in which even neutral voices are confused more often than this, with four clips enrolled, has labels
# or a channel too poor to learn weights from; its speakers still count as impostors.
LEGIBLE_EER = 0.12
# Where a corpus does not say the gender, speakers are parted by the pitch of their neutral clips: trials
# across genders would be easy, and would teach that any difference of pitch means another person.
GENDER_SPLIT_HZ = 165.0
# Terms that belong together are tried together.
GROUPS: dict[str, tuple[str, ...]] = {
    "f0_shift": ("f0_shift",),
    "f0": ("f0_above", "f0_below"),
    "f0_unknown": ("f0_unknown",),
    "f0_spread": ("f0_spread_above", "f0_spread_below"),
    "tilt": ("tilt_above", "tilt_below"),
    "envelope": ("envelope",),
    "norm": ("norm_above", "norm_below"),
    "mood_shift": ("mood_shift",),
    "test_seconds": ("test_seconds",),
    "enrol_seconds": ("enrol_seconds",),
    "snr": ("snr",),
    "exemplars": ("exemplars",),
}


# What explains a cosine while the moods are learnt, where the terms are yet to be chosen.
EXPLAINED_BY = ("f0", "norm", "enrol_seconds", "test_seconds")


def term_names(groups: Iterable[str]) -> tuple[str, ...]:
    """The terms of some `GROUPS`, ``cosine`` first."""
    return ("cosine", *(name for group in groups for name in GROUPS[group]))


class Clip(Protocol):
    """What the trials need to know of a clip."""

    @property
    def corpus(self) -> str: ...
    @property
    def speaker(self) -> str: ...
    @property
    def gender(self) -> str: ...
    @property
    def emotion(self) -> str: ...


@dataclasses.dataclass(frozen=True, slots=True)
class DevelopmentSpeech:
    """Clips that a verifier could use, with what it would measure on them.

    A clip that is another one in noise names it in `original`: it is tried wherever that one is, and never enrolled.
    """

    clips: Sequence[Clip]
    embeddings: NDArray[np.float32]  # (clips, embedding_dim), unit norm
    qualities: Sequence[SpeechQuality]
    original: Sequence[int] = ()  # of each clip the one that it was made of, or itself; by default all themselves

    def copies(self) -> dict[int, int]:
        """The clips that are another one in noise, each with that one."""
        return {i: made_of for i, made_of in enumerate(self.original) if made_of != i}


def measure(
    encoder: Encoder,
    sets: Iterable[PreparedSet],
    progress: Callable[[int], None] = lambda done: None,
    noises: Sequence[NDArray[np.float32]] = (),
) -> DevelopmentSpeech:
    """Embed and measure every usable clip, exactly as `Verifier.verify` would.

    Clips that a verifier would answer with NO_DECISION take no part.

    Parameters
    ----------
    encoder : Encoder
    sets : iterable of PreparedSet
    progress : callable
        Takes the number of clips done.
    noises : sequence of ndarray
        Each clip is measured once more with a piece of one of them, `NOISE_SNR_DB` below its speech; without
        noises it is not.
    """
    clips: list[Clip] = []
    embeddings, qualities, original = [], [], []
    rate = encoder.spec.sample_rate

    def add(clip: Clip, waveform: NDArray[np.float32], made_of: int | None) -> bool:
        speech = speech_only(waveform, rate)
        quality = measure_quality(waveform, rate, speech)
        if unusable(quality) is not None:
            return False
        embedding, norm = encoder.embed_with_norm(speech, rate)
        original.append(len(clips) if made_of is None else made_of)
        clips.append(clip)
        embeddings.append(embedding)
        qualities.append(quality.with_embedding_norm(norm))
        return True

    done = 0
    for each in sets:
        for index in _spread(each.clips):
            done += 1
            progress(done)
            clip, waveform = each.clips[index], each.waveform(index)
            if add(clip, waveform, None) and noises:
                # Drawn from the clip's own name: the same noise whatever else is measured.
                rng = np.random.default_rng((zlib.crc32(f"{clip.corpus}/{clip.path}".encode()), index))
                noise = noises[int(rng.integers(len(noises)))]
                add(clip, add_noise(waveform, noise, float(rng.uniform(*NOISE_SNR_DB)), rng), len(clips) - 1)
    if not clips:
        raise ValueError("no usable clip in the development speech; prepare it with `python -m train prepare`")
    return DevelopmentSpeech(clips, np.stack(embeddings), qualities, original)


def pink_noise(seconds: float, sample_rate: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise whose power falls by 3 dB an octave above 20 Hz, of RMS 0.1: what rooms and crowds come near to."""
    samples = round(seconds * sample_rate)
    rng = np.random.default_rng(seed)
    hz = np.fft.rfftfreq(samples, 1.0 / sample_rate)
    spectrum = rng.standard_normal(len(hz)) + 1j * rng.standard_normal(len(hz))
    spectrum *= (hz >= 20.0) / np.sqrt(np.maximum(hz, 20.0))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(0.1 * noise / np.sqrt(np.mean(np.square(noise))), np.float32)


def _spread(clips: Sequence[PreparedClip]) -> list[int]:
    """At most `CLIPS_PER_MOOD` clips of each speaker and emotion; of corpora in training, the speakers held out."""
    held_out = {corpus: held_out_speakers(list(clips), corpus) for corpus in HELD_OUT}
    moods: dict[tuple[str, str], list[int]] = {}
    for index, clip in enumerate(clips):
        if clip.speaker and (clip.corpus not in HELD_OUT or clip.speaker in held_out[clip.corpus]):
            moods.setdefault((clip.speaker, clip.emotion), []).append(index)
    chosen = []
    for found in moods.values():
        count = min(len(found), CLIPS_PER_MOOD)
        chosen += [found[k * len(found) // count] for k in range(count)]
    return sorted(chosen)


def noises_of(folders: Sequence[Path], sample_rate: int) -> list[NDArray[np.float32]]:
    """What `measure` adds: pink noise, and as many pieces of it as there are recordings where folders are given."""
    recorded = read_noises(list(folders)) if folders else []
    return [pink_noise(30.0, sample_rate, seed) for seed in range(max(1, len(recorded)))] + recorded


@dataclasses.dataclass(frozen=True, slots=True)
class Trials:
    """Trials of one corpus and one design of profiles."""

    corpus: str
    design: str
    cosines: Mapping[str, NDArray[np.float64]]  # pooling -> (trials,)
    evidence: Mapping[str, NDArray[np.float64]]  # every other term -> (trials,)
    target: NDArray[np.bool_]
    profile: NDArray[np.int32]  # speaker of the profile
    speaker: NDArray[np.int32]  # speaker of the test
    test: NDArray[np.int32]  # clip
    emotional: NDArray[np.bool_]  # the test is not neutral
    noisy: NDArray[np.bool_]  # the test is a clip with noise added
    names: tuple[str, ...]  # of the speakers, by their number
    owners: NDArray[np.int32]  # the speakers of the profiles, rising
    centroids: NDArray[np.float32]  # (owners, embedding_dim): the mean of each profile's exemplars, of unit norm
    moods: Moods | None = None  # that the trials are scored beside

    def name_of(self, speaker: int) -> tuple[str, str]:
        """Corpus and name of a speaker."""
        return self.corpus, self.names[speaker]

    def with_pooling(self, pooling: str) -> dict[str, NDArray[np.float64]]:
        """The evidence with the cosine of one pooling."""
        return {"cosine": self.cosines[pooling], **self.evidence}

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Trials:
        """Some of the trials."""
        return dataclasses.replace(
            self,
            cosines={name: values[index] for name, values in self.cosines.items()},
            evidence={name: values[index] for name, values in self.evidence.items()},
            **{
                name: getattr(self, name)[index]
                for name in ("target", "profile", "speaker", "test", "emotional", "noisy")
            },
        )


def _choose(clips: Sequence[Clip], own: NDArray[np.intp], design: str, rng: np.random.Generator) -> list[int]:
    """The clips of one speaker that make a profile of `design`; empty if there are too few."""
    neutral = [int(i) for i in own if clips[i].emotion in ("neutral", "")]
    if design == "single":
        return [int(rng.choice(neutral))] if neutral else []
    if design == "neutral":
        return [int(i) for i in rng.permutation(neutral)[:ENROL_CLIPS]] if len(neutral) >= 2 else []
    by_emotion: dict[str, list[int]] = {}
    for i in rng.permutation(own):
        by_emotion.setdefault(clips[i].emotion, []).append(int(i))
    others = [found[0] for emotion, found in by_emotion.items() if emotion not in ("neutral", "")]
    return [neutral[0], *others[: ENROL_CLIPS - 1]] if neutral and others else []


def mood_directions(
    speech: DevelopmentSpeech, corpora: Sequence[str], count: int = DIRECTIONS
) -> NDArray[np.float32]:
    """The directions in which moods move embeddings most, of some corpora.

    The eigenvectors of the mean covariance, over the speakers, of a speaker's mean embeddings by mood; every speaker
    weighs the same and every mood of one speaker does.

    Parameters
    ----------
    speech : DevelopmentSpeech
    corpora : sequence of str
        Whose speakers are heard in several moods.
    count : int
        At most so many: speakers who are heard in m moods each span m - 1.

    Returns
    -------
    ndarray, shape (directions, embedding_dim), float32, orthonormal rows, the strongest first

    Raises
    ------
    ValueError
        If no speaker of these corpora is heard in two moods.
    """
    copies = speech.copies()
    moods: dict[tuple[str, str], dict[str, list[int]]] = {}
    for i, clip in enumerate(speech.clips):
        if clip.corpus in corpora and i not in copies and clip.emotion:
            moods.setdefault((clip.corpus, clip.speaker), {}).setdefault(clip.emotion, []).append(i)
    spreads = []
    for own in moods.values():
        if len(own) > 1:
            means = np.stack([speech.embeddings[found].mean(axis=0, dtype=np.float64) for found in own.values()])
            means -= means.mean(axis=0)
            spreads.append(means / math.sqrt(len(own)))
    if not spreads:
        raise ValueError(
            f"expected speakers of {', '.join(corpora) or 'some corpora'} who are heard in two moods or more, "
            "got none; name corpora of acted speech"
        )
    _, _, rows = np.linalg.svd(np.concatenate(spreads), full_matrices=False)
    return np.asarray(rows[: min(count, sum(len(spread) - 1 for spread in spreads))], np.float32)


def make_trials(speech: DevelopmentSpeech, seed: int = 0) -> list[Trials]:
    """All trials within each corpus, for each design of profiles.

    A clip that any of its speaker's profiles holds is never a test, so that the designs are tried
    by the same clips; nor is what it sounds like in noise. Every other copy in noise is a test beside its clip.
    """
    rng = np.random.default_rng((seed, 7))
    clips = speech.clips
    copies = speech.copies()
    heard_again: dict[int, list[int]] = {}
    for copy, made_of in copies.items():
        heard_again.setdefault(made_of, []).append(copy)
    out = []
    for corpus in sorted({clip.corpus for clip in clips}):
        members = np.array([i for i, clip in enumerate(clips) if clip.corpus == corpus and i not in copies])
        speakers = sorted({clips[i].speaker for i in members})
        code = {name: number for number, name in enumerate(speakers)}
        chosen: dict[str, dict[int, list[int]]] = {design: {} for design in DESIGNS}
        tests: list[int] = []
        for name in speakers:
            own = np.array([i for i in members if clips[i].speaker == name])
            taken: set[int] = set()
            for design in DESIGNS:
                picked = _choose(clips, own, design, rng)
                if picked:
                    chosen[design][code[name]] = picked
                    taken.update(picked)
            # A speaker of few clips is an impostor at least; a clip never meets the profile that holds it.
            free = [int(i) for i in own if int(i) not in taken] or [int(own[-1])]
            drawn = [int(i) for i in rng.permutation(free)[:TESTS_PER_SPEAKER]]
            tests += [test for i in drawn for test in (i, *heard_again.get(i, ()))]
        for design in DESIGNS:
            if len(chosen[design]) > 1:
                out.append(_trials(speech, corpus, design, chosen[design], np.array(tests), code))
    if not out:
        raise ValueError("expected corpora with two speakers or more who have several clips each; got none")
    return out


def _genders(speech: DevelopmentSpeech, corpus: str) -> dict[str, str]:
    """Gender of each speaker, from the corpus or else from the pitch."""
    said: dict[str, str] = {}
    pitch: dict[str, list[tuple[bool, float]]] = {}
    copies = speech.copies()
    for i, (clip, quality) in enumerate(zip(speech.clips, speech.qualities, strict=True)):
        if clip.corpus == corpus and i not in copies:
            said[clip.speaker] = clip.gender
            neutral = clip.emotion in ("neutral", "")
            if quality.log_f0_mean is not None:
                pitch.setdefault(clip.speaker, []).append((neutral, quality.log_f0_mean))
    for speaker, gender in said.items():
        if not gender:
            all_values = pitch.get(speaker, [])
            values = [value for neutral, value in all_values if neutral] or [value for _, value in all_values]
            high = bool(values) and float(np.median(values)) > math.log(GENDER_SPLIT_HZ)
            said[speaker] = "high" if high else "low"
    return said


def _trials(
    speech: DevelopmentSpeech,
    corpus: str,
    design: str,
    chosen: Mapping[int, Sequence[int]],
    tests: NDArray[np.intp],
    code: Mapping[str, int],
) -> Trials:
    clips = speech.clips
    owners = np.array(sorted(chosen))
    index = [i for owner in owners for i in chosen[int(owner)]]
    bank = ProfileBank.from_arrays(
        [str(owner) for owner in owners],
        speech.embeddings[index],
        [speech.qualities[i] for i in index],
        [len(chosen[int(owner)]) for owner in owners],
    )
    means = np.stack([speech.embeddings[list(chosen[int(owner)])].mean(axis=0) for owner in owners])
    gender = _genders(speech, corpus)
    genders = np.array([gender[clips[chosen[int(owner)][0]].speaker] for owner in owners])
    members = [set(chosen[int(owner)]) for owner in owners]
    copies = speech.copies()
    columns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (*POOLINGS, *TERMS)}
    rows: dict[str, list[NDArray[np.int32]]] = {name: [] for name in ("profile", "speaker", "test")}
    for i in tests:
        clip = clips[i]
        keep = (genders == gender[clip.speaker]) & np.array(
            [copies.get(int(i), int(i)) not in held for held in members]
        )
        if not keep.any():
            continue
        evidence = bank.evidence(speech.embeddings[i], speech.qualities[i], "mean")
        for name in TERMS:
            columns[name].append(evidence[name][keep])
        for pooling in POOLINGS:
            columns[pooling].append(bank.cosines(speech.embeddings[i], pooling)[keep])
        count = int(keep.sum())
        rows["profile"].append(owners[keep].astype(np.int32))
        rows["speaker"].append(np.full(count, code[clip.speaker], np.int32))
        rows["test"].append(np.full(count, i, np.int32))
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    whole = {name: np.concatenate(values) for name, values in rows.items()}
    return Trials(
        corpus=corpus,
        design=design,
        cosines={pooling: joined[pooling] for pooling in POOLINGS},
        evidence={name: joined[name] for name in TERMS if name != "cosine"},
        target=whole["profile"] == whole["speaker"],
        emotional=np.array([clips[i].emotion not in ("neutral", "") for i in whole["test"]]),
        noisy=np.array([int(i) in copies for i in whole["test"]]),
        names=tuple(code),
        owners=owners.astype(np.int32),
        centroids=np.asarray(means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6), np.float32),
        **whole,
    )


def beside_moods(trials: Iterable[Trials], speech: DevelopmentSpeech, moods: Moods) -> list[Trials]:
    """The same trials as a `ProfileBank` with these moods scores them: their centroid cosines and ``mood_shift``.

    Parameters
    ----------
    trials : iterable of Trials
        Of `make_trials` of this speech, before any moods.
    speech : DevelopmentSpeech
    moods : Moods

    Returns
    -------
    list of Trials
        With the pooling ``centroid`` alone.
    """
    directions, shares, axis = moods.arrays()
    out = []
    for each in trials:
        tests, test = np.unique(each.test, return_inverse=True)
        heard = speech.embeddings[tests]
        voices = without_shares(heard, directions, shares)
        profile = np.searchsorted(each.owners, each.profile)
        shift = (heard @ axis)[test] - (each.centroids @ axis)[profile]
        cosines = np.clip((each.centroids @ voices.T)[profile, test].astype(np.float64), -1.0, 1.0)
        evidence = {**each.evidence, "mood_shift": shift.astype(np.float64)}
        out.append(dataclasses.replace(each, cosines={"centroid": cosines}, evidence=evidence, moods=moods))
    return out


@dataclasses.dataclass(frozen=True, slots=True)
class _Problem:
    """Trials as one matrix: columns are all `TERMS`, classes and corpora weigh the same."""

    values: NDArray[np.float64]  # (trials, TERMS)
    target: NDArray[np.bool_]
    weight: NDArray[np.float64]
    corpus: NDArray[np.str_]
    owner: NDArray[np.int32]  # speaker of the profile, within the corpus
    beside: NDArray[np.float32]  # (trials, columns): what was asked for beside the terms


def _problem(
    trials: Sequence[Trials],
    pooling: str,
    seed: int = 0,
    beside: Callable[[Trials], NDArray[np.float32]] = lambda some: np.empty((len(some.target), 0), np.float32),
) -> _Problem:
    """The tests in another mood than neutral, as a problem; `beside` gives further columns of some trials.

    In neutral tests a difference of pitch only marks another person; among them the fit would not learn
    that a raised voice explains a lower cosine.
    """
    rng = np.random.default_rng((seed, 11))
    values, target, corpus, weight, owner, further = [], [], [], [], [], []
    parts = Counter(each.corpus for each in trials)
    for every in trials:
        each = every.take(every.emotional)
        share = NONTARGETS_PER_CORPUS // parts[each.corpus]
        nontargets = np.flatnonzero(~each.target)
        if len(nontargets) > share:
            nontargets = rng.choice(nontargets, share, replace=False)
        some = each.take(np.concatenate((np.flatnonzero(each.target), nontargets)))
        evidence = some.with_pooling(pooling)
        values.append(np.stack([evidence[name] for name in TERMS], axis=1))
        target.append(some.target)
        corpus.append(np.full(len(some.target), each.corpus))
        weight.append(_speaker_weight(some))
        owner.append(some.profile)
        further.append(beside(some))
    return _Problem(
        np.concatenate(values),
        np.concatenate(target),
        np.concatenate(weight),
        np.concatenate(corpus),
        np.concatenate(owner),
        np.concatenate(further),
    )


def _speaker_weight(trials: Trials) -> NDArray[np.float64]:
    """Every target speaker weighs the same, whatever the corpus; its non-targets weigh as much as its targets."""
    weight = np.zeros(len(trials.target))
    owners = len(np.unique(trials.speaker[trials.target]))
    for kind in (True, False):
        rows = trials.target == kind
        if rows.any():
            _, inverse, counts = np.unique(trials.speaker[rows], return_inverse=True, return_counts=True)
            weight[rows] = owners / len(counts) / counts[inverse]
    return weight


def _class_weights(problem: _Problem, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    weight = np.where(rows, problem.weight, 0.0)
    for kind in (True, False):
        total = weight[problem.target == kind].sum()
        weight[problem.target == kind] *= 0.5 / max(total, 1e-12)
    return weight


def _fit_weights(problem: _Problem, names: Sequence[str], rows: NDArray[np.bool_]) -> tuple[float, list[float]]:
    """Bias and weights that minimise the logistic loss at `PRIOR` on the rows, by LBFGS on the standardised terms.

    While the weights are learnt each corpus has an offset of its own: otherwise one of long clips whose scores all lie
    higher teaches that seconds count, and one of high voices that pitch does. The bias is then one for all.
    """
    columns = [TERMS.index(name) for name in names]
    weight = _class_weights(problem, rows)[rows]
    x, centre, scale = _standardised(problem.values[np.ix_(rows, columns)], weight)
    _, code = np.unique(problem.corpus[rows], return_inverse=True)
    corpus = torch.from_numpy(code)
    slopes = torch.zeros(len(columns), dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(int(corpus.max()) + 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def shrinkage() -> torch.Tensor:
        return SHRINKAGE * slopes.square().sum()

    target = problem.target[rows]
    _minimise(lambda: x @ slopes + offsets[corpus] + bias, shrinkage, target, weight, [slopes, offsets, bias])
    score = (x @ slopes).detach()
    _minimise(lambda: score + bias, lambda: torch.zeros(()), target, weight, [bias])
    found = slopes.detach().numpy() / scale
    return float(bias.detach()) - float((found * centre).sum()), [float(slope) for slope in found]


def _standardised(
    values: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[torch.Tensor, NDArray[np.float64], NDArray[np.float64]]:
    """The values with weighted mean 0 and variance 1; the mean and the deviation that they had."""
    centre = np.average(values, axis=0, weights=weight)
    scale = np.sqrt(np.average((values - centre) ** 2, axis=0, weights=weight)) + 1e-9
    return torch.from_numpy((values - centre) / scale), centre, scale


def learn_moods(
    speech: DevelopmentSpeech,
    trials: Sequence[Trials],
    corpora: Sequence[str],
    names: Sequence[str] | None = None,
    count: int = DIRECTIONS,
) -> Moods:
    """What moods do to the embeddings: directions of some corpora, their shares and the axis of all that teach.

    Shares and axis are learnt with the weights of the terms that explain a cosine, by the same loss: the shares are
    those of the least loss between 0 and 1, the axis is the direction whose coordinate explains best.

    Parameters
    ----------
    speech : DevelopmentSpeech
    trials : sequence of Trials
        Of this speech, before any moods; of `teaching_trials`.
    corpora : sequence of str
        That give the directions (see `mood_directions`).
    names : sequence of str, optional
        The terms that stand beside; by default those of `EXPLAINED_BY`.
    count : int
        Of directions, at most.
    """
    directions = mood_directions(speech, corpora, count)
    tests = speech.embeddings @ directions.T

    def coordinates(some: Trials) -> NDArray[np.float32]:
        profiles = (some.centroids @ directions.T)[np.searchsorted(some.owners, some.profile)]
        return np.concatenate((profiles, tests[some.test]), axis=1)

    problem = _problem(trials, "centroid", beside=coordinates)
    profile, heard = np.split(problem.beside, 2, axis=1)
    names = [name for name in names or term_names(EXPLAINED_BY) if name != "mood_shift"]
    weight = _class_weights(problem, np.ones(len(problem.target), bool))
    moved = (heard - profile)[:, :AXIS_DIRECTIONS]
    values = np.concatenate((problem.values[:, [TERMS.index(name) for name in names]], moved), axis=1)
    x, _, scale = _standardised(values, weight)
    shared = torch.from_numpy((heard * profile).astype(np.float64))
    _, code = np.unique(problem.corpus, return_inverse=True)
    corpus = torch.from_numpy(code)
    slopes = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(int(corpus.max()) + 1, dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(len(directions), dtype=torch.float64, requires_grad=True)
    of_cosine, held = names.index("cosine"), len(names)

    def llr() -> torch.Tensor:
        per_cosine = slopes[of_cosine] / float(scale[of_cosine])
        return x @ slopes - per_cosine * (shared @ torch.sigmoid(logits)) + offsets[corpus]

    def shrinkage() -> torch.Tensor:
        return (
            SHRINKAGE * slopes[:held].square().sum()
            + AXIS_SHRINKAGE * slopes[held:].square().sum()
            + SHARE_SHRINKAGE * torch.sigmoid(logits).square().sum()
        )

    _minimise(llr, shrinkage, problem.target, weight, [slopes, offsets, logits])
    axis = (slopes.detach().numpy()[held:] / scale[held:]) @ directions[: moved.shape[1]].astype(np.float64)
    length = float(np.linalg.norm(axis))
    axis = axis / length if length > 1e-9 else directions[0].astype(np.float64)
    shares = torch.sigmoid(logits).detach().numpy()
    return Moods(directions.astype("<f4").tobytes(), tuple(map(float, shares)), axis.astype("<f4").tobytes())


def _minimise(
    llr: Callable[[], torch.Tensor],
    penalty: Callable[[], torch.Tensor],
    target: NDArray[np.bool_],
    weight: NDArray[np.float64],
    parameters: list[torch.Tensor],
) -> None:
    """Change the parameters until the logistic loss of the LLR at `PRIOR` is least, both classes weighing 0.5."""
    odds = math.log(PRIOR / (1.0 - PRIOR))
    sign = torch.from_numpy(np.where(target, 1.0, -1.0))
    w = torch.from_numpy(weight * np.where(target, 2.0 * PRIOR, 2.0 * (1.0 - PRIOR)))
    optimiser = torch.optim.LBFGS(parameters, max_iter=100, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = (w * torch.nn.functional.softplus(-sign * (llr() + odds))).sum() / math.log(2.0) + penalty()
        loss.backward()
        return loss

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrix is small; more threads only wait for each other
    try:
        optimiser.step(closure)
    finally:
        torch.set_num_threads(threads)


def _llr(problem: _Problem, names: Sequence[str], bias: float, weights: Sequence[float]) -> NDArray[np.float64]:
    columns = [TERMS.index(name) for name in names]
    return problem.values[:, columns] @ np.asarray(weights) + bias


def _weighted_cllr(llr: NDArray[np.float64], target: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    return float((weight * np.logaddexp(0.0, np.where(target, -llr, llr))).sum() / math.log(2.0))


def _affine_cllr(llr: NDArray[np.float64], target: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    """The least Cllr of scale x LLR + offset: what the ordering is worth, whatever the corpus's own offset."""
    centre = float(np.average(llr, weights=weight))
    spread = math.sqrt(float(np.average((llr - centre) ** 2, weights=weight))) + 1e-9
    x = np.stack(((llr - centre) / spread, np.ones(len(llr))), axis=1)
    found = np.zeros(2)
    for _ in range(50):  # Newton on two parameters
        chance = 1.0 / (1.0 + np.exp(-np.clip(x @ found, -50.0, 50.0)))
        gradient = x.T @ (weight * (chance - target)) + 1e-6 * found
        curve = (x * (weight * chance * (1.0 - chance))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(curve, gradient)
        found -= step * min(1.0, 2.0 / (float(np.abs(step).max()) + 1e-12))
        if float(np.abs(step).max()) < 1e-9:
            break
    return _weighted_cllr(x @ found, target, weight)


def _unseen(problem: _Problem, names: Sequence[str], judged: Iterable[str] | None = None) -> dict[str, float]:
    """Cllr on each corpus (or on those of `judged`), its own scale and offset granted, of weights fitted on the others.

    Scale and offset belong to its rooms, microphones and language, which differ by more than any term
    is worth (see `leave_one_corpus_out` for Cllr without that grant) and would drown the comparison.
    """
    out = {}
    for corpus in np.unique(problem.corpus) if judged is None else judged:
        held = problem.corpus == corpus
        if len(np.unique(problem.owner[held & problem.target])) < JUDGED_SPEAKERS:
            continue
        bias, weights = _fit_weights(problem, names, ~held)
        weight = _class_weights(problem, held)[held]
        llr = _llr(problem, names, bias, weights)[held]
        out[str(corpus)] = _affine_cllr(llr, problem.target[held], weight)
    if not out:
        raise ValueError(f"expected a corpus with {JUDGED_SPEAKERS} enrolled speakers or more to judge terms on")
    return out


def _legible(trials: Sequence[Trials], pooling: str) -> set[str]:
    """The corpora to learn weights from: of several moods, their neutral voices told apart by the cosine."""
    errors: dict[str, list[float]] = {}
    for each in trials:
        some, moody = each.take(~each.emotional & ~each.noisy), each.take(each.emotional)
        if each.design != "neutral" or not moody.target.any() or not some.target.any() or some.target.all():
            continue
        cosines = some.cosines[pooling]
        errors.setdefault(each.corpus, []).append(eer(cosines[some.target], cosines[~some.target]))
    return {corpus for corpus, found in errors.items() if np.mean(found) <= LEGIBLE_EER}


def teaching_trials(speech: DevelopmentSpeech, pooling: str) -> list[Trials]:
    """The trials to learn weights from: of the corpora fit for it, with several draws of the profiles.

    Raises
    ------
    ValueError
        If no corpus is fit for it.
    """
    drawn = [each for seed in range(DRAWS) for each in make_trials(speech, seed)]
    good = _legible(drawn, pooling)
    if not good:
        raise ValueError("no corpus of several moods whose neutral voices the cosine tells apart; prepare more speech")
    return [each for each in drawn if each.corpus in good]


def select_terms(trials: Sequence[Trials], pooling: str) -> tuple[tuple[str, ...], list[dict[str, float | str]]]:
    """Forward selection: add the group that lowers Cllr on unseen corpora most, while one does.

    Returns
    -------
    names : tuple of str
        The terms kept, ``cosine`` first.
    steps : list of dict
        For every candidate tried: ``step``, ``terms``, the Cllr of each corpus left out, their ``mean``.
    """
    problem = _problem(trials, pooling)
    if len(np.unique(problem.corpus)) < 2:
        raise ValueError("expected two corpora or more: one is left out to judge the weights of the others")
    names: tuple[str, ...] = ("cosine",)
    # What is easy is so without noise: the noise alone would not make its clips a matter of mood.
    clear = _unseen(_problem([each.take(~each.noisy) for each in trials], pooling), names)
    best = _unseen(problem, names)
    best = {corpus: left for corpus, left in best.items() if clear.get(corpus, 0.0) >= EASY_CLLR} or best
    steps: list[dict[str, float | str]] = [_step(0, "cosine", best)]
    remaining = dict(GROUPS)
    for step in range(1, len(GROUPS) + 1):
        found: tuple[float, str, dict[str, float]] | None = None
        for label, group in remaining.items():
            unseen = _unseen(problem, (*names, *group), best)
            steps.append(_step(step, f"+ {label}", unseen))
            change = [math.log((unseen[corpus] + 1e-3) / (best[corpus] + 1e-3)) for corpus in best]
            gain, harm = -np.mean(change), max(change)
            if gain >= GAIN and harm <= HARM and (found is None or gain > found[0]):
                found = float(gain), label, unseen
        if found is None:
            break
        names, best = (*names, *remaining.pop(found[1])), found[2]
        steps.append(_step(step, f"kept {found[1]}", best))
    return names, steps


def _step(step: int, label: str, unseen: Mapping[str, float]) -> dict[str, float | str]:
    return {"step": float(step), "terms": label, **unseen, "mean": float(np.mean(list(unseen.values())))}


def left_out_scores(
    trials: Sequence[Trials],
    pooling: str,
    names: Sequence[str],
    design: str = "neutral",
    emotional: bool = True,
    judged: Sequence[Trials] | None = None,
    noisy: bool = False,
) -> list[tuple[Trials, NDArray[np.float64]]]:
    """Trials and their LLRs, each corpus scored with the weights and the bias of all the others.

    Parameters
    ----------
    trials : sequence of Trials
        Those that teach the weights.
    pooling : str
    names : sequence of str
        The terms.
    design : {"single", "neutral", "varied"}
    emotional : bool
        Whether the tests are in another mood than neutral, or neutral.
    judged : sequence of Trials, optional
        The trials to judge, of other corpora too; by default `trials`.
    noisy : bool
        Whether the tests are those with noise added, or those without.

    Returns
    -------
    list of (Trials, ndarray of shape (trials,))
        One for each corpus and draw of the profiles that has trials of both kinds.
    """
    problem = _problem(trials, pooling)
    fits: dict[str, tuple[float, list[float]]] = {}
    out = []
    for each in trials if judged is None else judged:
        if each.design != design:
            continue
        some = each.take((each.emotional == emotional) & (each.noisy == noisy))
        if not some.target.any() or some.target.all():
            continue
        if each.corpus not in fits:
            fits[each.corpus] = _fit_weights(problem, names, problem.corpus != each.corpus)
        bias, weights = fits[each.corpus]
        evidence = some.with_pooling(pooling)
        scored = [weight * evidence[name] for name, weight in zip(names, weights, strict=True)]
        out.append((some, bias + np.sum(scored, axis=0)))
    return out


def leave_one_corpus_out(
    trials: Sequence[Trials],
    pooling: str,
    names: Sequence[str],
    design: str = "neutral",
    emotional: bool = True,
    judged: Sequence[Trials] | None = None,
    noisy: bool = False,
) -> dict[str, dict[str, float]]:
    """Error rates and Cllr of each corpus, the weights from the others.

    With ``design="neutral"`` and emotional tests these are the trials of the protocol ``enrol``. The
    figures are averaged over the draws of the profiles. The parameters are those of `left_out_scores`.

    Returns
    -------
    dict from corpus to dict
        ``eer``, ``frr_at_1`` (false rejects at 1 % false accepts), ``cllr``, ``affine_cllr`` (with a scale
        and offset of the corpus's own), ``min_cllr``, ``targets``.
    """
    return corpus_by_corpus(left_out_scores(trials, pooling, names, design, emotional, judged, noisy))


def corpus_by_corpus(scored: Sequence[tuple[Trials, NDArray[np.float64]]]) -> dict[str, dict[str, float]]:
    """The figures of `leave_one_corpus_out` from scores of `left_out_scores`."""
    drawn: dict[str, list[dict[str, float]]] = {}
    for some, llr in scored:
        own, others = llr[some.target], llr[~some.target]
        even = np.where(some.target, 0.5 / len(own), 0.5 / len(others))
        drawn.setdefault(some.corpus, []).append(_figures(llr, some.target) | {
            "affine_cllr": _affine_cllr(llr, some.target, even)
        })  # fmt: skip
    return {
        corpus: {name: float(np.mean([figures[name] for figures in draws])) for name in draws[0]}
        for corpus, draws in drawn.items()
    }


def together(scored: Sequence[tuple[Trials, NDArray[np.float64]]]) -> dict[str, float]:
    """The figures of all corpora's trials in one: whether one score means the same in all of them."""
    llr = np.concatenate([each for _, each in scored])
    return _figures(llr, np.concatenate([some.target for some, _ in scored]))


def _figures(llr: NDArray[np.float64], target: NDArray[np.bool_]) -> dict[str, float]:
    own, others = llr[target], llr[~target]
    return {
        "eer": eer(own, others),
        "frr_at_1": frr_at_far(own, others, 0.01),
        "cllr": cllr(own, others),
        "min_cllr": min_cllr(own, others),
        "targets": float(len(own)),
    }


def at_one_threshold(
    everyone: Sequence[Trials],
    trials: Sequence[Trials],
    pooling: str,
    names: Sequence[str],
    rate: float = 0.01,
    noisy: bool = False,
    judged: Collection[str] | None = None,
) -> dict[tuple[str, str], dict[str, float]]:
    """False rejects and accepts of each corpus, tests in other moods, at the threshold that all the others make.

    What a user meets: neither the weights nor the threshold know their room. `leave_one_corpus_out` judges the
    ranking within a corpus; this counts how far the corpora's scores lie apart as well.

    Parameters
    ----------
    everyone : sequence of Trials
        Whose impostors make the threshold.
    trials : sequence of Trials
        Those that teach the weights.
    rate : float
        The false-accept rate asked for.
    noisy : bool
        Whether the tests counted are those with noise added, or those without; the threshold is made by both.
    judged : collection of str, optional
        The corpora to count; all unless given.

    Returns
    -------
    dict from (corpus, design) to dict
        ``frr``, ``far`` (NaN where there are no trials of the kind), ``targets``, and ``extrapolated``: 1 where
        too few speakers are left without the corpus to support the rate.
    """
    problem = _problem(trials, pooling)
    out = {}
    for corpus in sorted({each.corpus for each in everyone if judged is None or each.corpus in judged}):
        others = [each for each in everyone if each.corpus != corpus]
        bare = _without_thresholds(problem, pooling, names, problem.corpus != corpus, trials[0].moods)
        calibration = _with_thresholds(bare, others, (1,))
        threshold = calibration.threshold(rate, extrapolate=True)
        for each in everyone:
            some = each.take(each.emotional & (each.noisy == noisy))
            if each.corpus == corpus and len(some.target):
                llr = calibration.llr(some.with_pooling(pooling))
                own, strange = llr[some.target], llr[~some.target]
                out[corpus, each.design] = {
                    "frr": float(np.mean(own < threshold.llr)) if len(own) else math.nan,
                    "far": float(np.mean(strange >= threshold.llr)) if len(strange) else math.nan,
                    "extrapolated": float(threshold.extrapolated),
                    "targets": float(len(own)),
                }
    return out


def pooling_table(trials: Sequence[Trials], names: Sequence[str]) -> list[dict[str, float | str]]:
    """Unseen-corpus EER and false rejects for each pooling and design, on emotional tests."""
    rows = []
    for design in DESIGNS:
        for pooling in POOLINGS:
            found = leave_one_corpus_out(trials, pooling, names, design)
            row: dict[str, float | str] = {"design": design, "pooling": pooling}
            for corpus, figures in found.items():
                row[corpus] = figures["eer"]
            row["mean"] = float(np.mean([figures["eer"] for figures in found.values()]))
            row["frr_at_1"] = float(np.mean([figures["frr_at_1"] for figures in found.values()]))
            rows.append(row)
    return rows


def term_table(trials: Sequence[Trials], pooling: str, names: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """`leave_one_corpus_out` for the cosine alone, with the F0 terms, and with all of `names`."""
    return {
        "cosine": leave_one_corpus_out(trials, pooling, ("cosine",)),
        "cosine + f0_shift": leave_one_corpus_out(trials, pooling, ("cosine", "f0_shift")),
        "cosine + f0": leave_one_corpus_out(trials, pooling, ("cosine", *GROUPS["f0"])),
        " + ".join(names): leave_one_corpus_out(trials, pooling, names),
    }


def _without_thresholds(
    problem: _Problem, pooling: str, names: Sequence[str], rows: NDArray[np.bool_], moods: Moods | None
) -> Calibration:
    """The calibration that these rows teach, before it has thresholds."""
    bias, weights = _fit_weights(problem, names, rows)
    terms = []
    for name, weight in zip(names, weights, strict=True):
        column = problem.values[rows, TERMS.index(name)]
        low, high = (-1.0, 1.0) if name == "cosine" else np.quantile(column, (0.002, 0.998))
        terms.append(Term(name, weight, float(low), float(high)))
    return Calibration(pooling, bias, tuple(terms), (FarTable(1, (0.5, 0.4), (0.0, 0.0)),), 1, "", moods)


def _impostor_speakers(trials: Sequence[Trials]) -> set[tuple[str, str]]:
    return {each.name_of(code) for each in trials for code in np.unique(each.speaker[~each.target])}


def _with_thresholds(bare: Calibration, trials: Sequence[Trials], counts: Iterable[int]) -> Calibration:
    """The calibration with the thresholds that the impostors of `trials` make, for so many profiles at once."""
    tables = tuple(table for count in counts if (table := far_table(trials, bare, count)) is not None)
    return dataclasses.replace(bare, far_tables=tables, num_impostor_speakers=len(_impostor_speakers(trials)))


def _impostors(trials: Sequence[Trials], calibration: Calibration) -> list[tuple[NDArray[np.float64], Trials]]:
    out = []
    for each in trials:
        some = each.take(~each.target)
        out.append((calibration.llr(some.with_pooling(calibration.pooling)), some))
    return out


def far_table(trials: Sequence[Trials], calibration: Calibration, num_profiles: int) -> FarTable | None:
    """Thresholds on the LLR by false-accept rate, an attempt being compared with `num_profiles` profiles.

    Every impostor speaker weighs the same. The maximum over a random choice of `num_profiles` of
    the M profiles is the k-th highest LLR with probability C(M - k, num_profiles - 1) / C(M, num_profiles),
    which is summed exactly instead of drawn.
    """
    llrs, weights, speakers = [], [], []
    for llr, some in _impostors(trials, calibration):
        order = np.lexsort((-llr, some.test))
        _, counts = np.unique(some.test[order], return_counts=True)
        lookup = {int(count): _chances(int(count), num_profiles) for count in np.unique(counts)}
        chance = np.concatenate([lookup[int(count)] for count in counts])
        llrs.append(llr[order])
        weights.append(chance)
        names = np.array([f"{some.corpus} {name}" for name in some.names])
        speakers.append(names[some.speaker[order]])
    llr, weight, speaker = np.concatenate(llrs), np.concatenate(weights), np.concatenate(speakers)
    _, code = np.unique(speaker, return_inverse=True)
    mass = np.bincount(code, weights=weight)
    with_profiles = mass > 0
    count = int(with_profiles.sum())
    if count == 0:
        return None
    weight = weight / np.where(with_profiles, mass, 1.0)[code] / count
    order = np.argsort(-llr)
    above = np.cumsum(weight[order])
    ordered = llr[order]
    rates = [rate for rate in RATES if rate > RULE_OF_THREE / count * 1.02] + [min(0.5, RULE_OF_THREE / count)]
    if len(rates) < 2:
        return None
    thresholds = []
    for rate in rates:
        allowed = int(np.searchsorted(above, rate * (1 + 1e-9), side="right"))  # these may be accepted
        last = ordered[min(allowed, len(ordered) - 1)]
        thresholds.append(float(np.nextafter(last, math.inf)))
    return FarTable(num_profiles, tuple(rates), tuple(thresholds))


def _chances(profiles: int, chosen: int) -> NDArray[np.float64]:
    """Probability that the k-th highest of `profiles` scores is the highest of `chosen` drawn at random."""
    if profiles < chosen:
        return np.zeros(profiles)
    whole = math.comb(profiles, chosen)
    return np.array([math.comb(profiles - k, chosen - 1) / whole for k in range(1, profiles + 1)])


def fit_speech(
    speech: DevelopmentSpeech,
    *,
    pooling: str = "centroid",
    names: Sequence[str] | None = None,
    source: str | None = None,
    impostors: DevelopmentSpeech | None = None,
    moods: Sequence[str] = (),
    directions: int = DIRECTIONS,
) -> Calibration:
    """The calibration of measured development speech.

    Parameters
    ----------
    speech : DevelopmentSpeech
    pooling : str
        See train/CALIBRATION.md for the comparison behind the default.
    names : sequence of str, optional
        The terms; chosen by `select_terms` unless given.
    source : str, optional
        What the speech was; by default its corpora and numbers of speakers.
    impostors : DevelopmentSpeech, optional
        Further speech for the thresholds alone: one clip a speaker is enough there.
    moods : sequence of str
        Corpora of the speech that give the directions of moods (`learn_moods`); none leaves moods aside.
    directions : int
        How many of them at most.

    Raises
    ------
    ValueError
        If the speech can teach nothing, moods are asked for with another pooling than the centroid, or the term
        ``mood_shift`` without moods.
    """
    if moods and pooling != "centroid":
        raise ValueError(f"expected the pooling 'centroid' with moods, which are learnt for it, got {pooling!r}")
    if "mood_shift" in (names or ()) and not moods:
        raise ValueError("the term 'mood_shift' needs moods: name corpora that give their directions")
    everyone = make_trials(speech)
    trials = teaching_trials(speech, pooling)
    learnt = learn_moods(speech, trials, moods, names, directions) if moods else None
    if learnt is not None:
        everyone, trials = beside_moods(everyone, speech, learnt), beside_moods(trials, speech, learnt)
    if names is None:
        names, _ = select_terms(trials, pooling)
    problem = _problem(trials, pooling)
    if impostors is not None:
        further = make_trials(impostors)
        everyone += further if learnt is None else beside_moods(further, impostors, learnt)
    tried = _impostor_speakers(everyone)
    if source is None:
        corpora = sorted({corpus for corpus, _ in tried})
        used = {each.corpus for each in trials}
        counts = {corpus: sum(key[0] == corpus for key in tried) for corpus in corpora}
        notes = {corpus: "" if corpus in used else ", impostors only" for corpus in corpora}
        source = ", ".join(f"{corpus} ({counts[corpus]} speakers{notes[corpus]})" for corpus in corpora)
    bare = _without_thresholds(problem, pooling, names, np.ones(len(problem.target), bool), learnt)
    return dataclasses.replace(_with_thresholds(bare, everyone, NUM_PROFILES), source=source)


def fit_calibration(
    encoder: Encoder,
    clips: Iterable[PreparedSet],
    impostors: Iterable[PreparedSet] = (),
    names: Sequence[str] | None = None,
    noises: Sequence[NDArray[np.float32]] | None = None,
    moods: Sequence[str] = (),
    directions: int = DIRECTIONS,
) -> Calibration:
    """Measure development speech with `encoder` and fit its calibration; what `export` calls.

    Parameters
    ----------
    encoder : Encoder
        The int8 model whose file the calibration will be written into.
    clips : iterable of PreparedSet
        Two corpora or more that the encoder was not trained on, with several clips a speaker.
    impostors : iterable of PreparedSet
        Further corpora that the encoder was not trained on, for the false-accept rates alone.
    names : sequence of str, optional
        The terms; chosen by `select_terms` unless given.
    noises : sequence of ndarray, optional
        That every test is also heard in (see `measure`); pink noise unless given, none if empty.
    moods, directions
        As for `fit_speech`.
    """
    if noises is None:
        noises = noises_of((), encoder.spec.sample_rate)
    others = list(impostors)
    further = measure(encoder, others, noises=noises) if others else None
    speech = measure(encoder, clips, noises=noises)
    return fit_speech(speech, names=names, impostors=further, moods=moods, directions=directions)
