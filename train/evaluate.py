"""Protocols of the evaluation speech: embeddings and a manifest -> error rates, tables and figures.

Four protocols, each over trials of the same gender where both genders are known:

- ``pairs``: every pair of clips of different emotions; the target is the same speaker;
- ``same``: every pair of equal emotions (on ordinary speech: the usual all-pairs figure);
- ``neutral``: both clips neutral;
- ``enrol``: a profile is the mean of a speaker's first four neutral clips in manifest order, the tests are
  every non-neutral clip, own (target) and others' (non-target).

A clip without a speaker takes no part; an empty emotion pairs only with an empty one.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .metrics import DetCurve, bootstrap_far_frr, bootstrap_interval, cllr, det_curve, far_frr_at, min_cllr

if TYPE_CHECKING:
    from emoinv_edge.quality import SpeechQuality
    from emoinv_edge.scoring import Calibration

__all__ = [
    "PROTOCOLS",
    "EmbeddingCache",
    "EvaluationSet",
    "Trials",
    "embed_set",
    "evaluate_embeddings",
    "format_table",
    "make_trials",
    "open_set",
]

PROTOCOLS = ("neutral", "same", "pairs", "enrol")
ENROL_CLIPS = 4
PRIORS = (0.01, 0.05)
FARS = (0.01, 0.001)
DURATIONS_S = (0.0, 1.5, 3.0, 6.0)
# The pairs of so many clips are at most 18 million; a larger set is thinned evenly, and the result says so.
MAX_CLIPS = 6000
CACHE_FORMAT = 2  # vectors as the model gives them; in format 1 some were of unit norm


class Clip(Protocol):
    """What the protocols need to know of a clip."""

    @property
    def speaker(self) -> str: ...
    @property
    def gender(self) -> str: ...
    @property
    def emotion(self) -> str: ...


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationClip:
    """One row of an evaluation folder's manifest."""

    path: str
    speaker: str
    gender: str
    emotion: str
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Clips with their labels, and how to get the samples of one."""

    name: str
    clips: Sequence[Any]
    waveform: Callable[[int], NDArray[np.float32]]
    seconds: NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class Trials:
    """Trials of one protocol: enrolment side, test side, and whether they are one speaker.

    `enrol` indexes clips, or profiles where `profiles` lists the clips of each; `test` indexes clips.
    """

    enrol: NDArray[np.int32]
    test: NDArray[np.int32]
    target: NDArray[np.bool_]
    profiles: tuple[tuple[int, ...], ...] = ()

    def scores(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosine of each trial; a profile is the mean of its clips' embeddings, scaled to unit norm."""
        side = embeddings
        if self.profiles:
            side = unit(np.stack([embeddings[list(clips)].mean(axis=0) for clips in self.profiles]))
        out = np.empty(len(self.enrol), np.float32)
        # Whole rows of the matrix of cosines, in blocks: far cheaper than one dot product per trial.
        order = np.argsort(self.enrol, kind="stable")
        enrol, test = self.enrol[order], self.test[order]
        for first in range(0, len(side), 512):
            low, high = np.searchsorted(enrol, (first, first + 512))
            if low < high:
                block = side[first : first + 512] @ embeddings.T
                out[order[low:high]] = block[enrol[low:high] - first, test[low:high]]
        return out


def unit(embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows scaled to unit norm."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms < 1e-9).any():
        bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] < 1e-9))
        raise ValueError(f"{len(bad)} of {len(norms)} embeddings are zero or not finite, the first is row {bad[0]}")
    return np.asarray(embeddings / norms, np.float32)


def _codes(values: Iterable[str]) -> tuple[list[str], NDArray[np.int32]]:
    """Distinct values in sorted order, and the position of each value in it."""
    names, codes = np.unique(np.array(list(values), dtype=str), return_inverse=True)
    return [str(name) for name in names], codes.astype(np.int32)


def make_trials(clips: Sequence[Clip], protocol: str) -> Trials:
    """The trials of one protocol, in a fixed order.

    Raises
    ------
    ValueError
        If the protocol is not known.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"expected a protocol of {PROTOCOLS}, got {protocol!r}")
    genders, gender = _codes(clip.gender for clip in clips)
    _, speaker = _codes(clip.speaker for clip in clips)
    _, emotion = _codes(clip.emotion for clip in clips)
    neutral = np.array([clip.emotion == "neutral" for clip in clips], bool)
    known = np.array([clip.speaker != "" for clip in clips], bool)
    gender_known = np.array([name != "" for name in genders], bool)[gender] if len(clips) else np.empty(0, bool)

    if protocol == "enrol":
        mine: dict[int, list[int]] = {}
        for i in np.flatnonzero(neutral & known):
            mine.setdefault(int(speaker[i]), []).append(int(i))
        profiles = tuple(tuple(indices[:ENROL_CLIPS]) for indices in mine.values() if len(indices) >= ENROL_CLIPS)
        tests = np.flatnonzero(~neutral & known & np.array([clip.emotion != "" for clip in clips], bool))
        first = np.array([indices[0] for indices in profiles], np.int64)
        enrol = np.repeat(np.arange(len(profiles)), len(tests))
        test = np.tile(tests, len(profiles))
        owner = np.repeat(first, len(tests)) if len(profiles) else np.empty(0, np.int64)
    else:
        profiles = ()
        chosen = np.flatnonzero(known & neutral) if protocol == "neutral" else np.flatnonzero(known)
        left, right = np.triu_indices(len(chosen), 1)
        enrol, test = chosen[left], chosen[right]
        owner = enrol
    keep = (gender[owner] == gender[test]) | ~gender_known[owner] | ~gender_known[test]
    if protocol == "same":
        keep &= emotion[owner] == emotion[test]
    elif protocol == "pairs":
        unknown = np.array([clip.emotion == "" for clip in clips], bool)
        keep &= (emotion[owner] != emotion[test]) & ~unknown[owner] & ~unknown[test]
    target = speaker[owner[keep]] == speaker[test[keep]]
    return Trials(enrol[keep].astype(np.int32), test[keep].astype(np.int32), target, profiles)


def _seconds(clips: Sequence[Any]) -> NDArray[np.float64]:
    return np.array([clip.seconds if hasattr(clip, "seconds") else clip.samples / 16000.0 for clip in clips])


def thin(clips: Sequence[Any], most: int) -> NDArray[np.int64]:
    """Indices of at most `most` clips, taken evenly from every speaker and emotion in manifest order."""
    if len(clips) <= most:
        return np.arange(len(clips))
    cells: dict[tuple[str, str], list[int]] = {}
    for i, clip in enumerate(clips):
        cells.setdefault((clip.speaker, clip.emotion), []).append(i)
    low, high = 1, max(len(indices) for indices in cells.values())
    while low < high:  # the largest number of clips per cell that stays below the limit
        middle = (low + high + 1) // 2
        if sum(min(len(indices), middle) for indices in cells.values()) <= most:
            low = middle
        else:
            high = middle - 1
    kept = [i for indices in cells.values() for i in indices[:low]]
    return np.sort(np.array(kept))[:most]


def _figures(scores: NDArray[np.floating], target: NDArray[np.bool_]) -> dict[str, Any] | None:
    targets, nontargets = scores[target], scores[~target]
    if not len(targets) or not len(nontargets):
        return None
    return {"eer": det_curve(targets, nontargets).eer(), "targets": len(targets), "nontargets": len(nontargets)}


def _grouped(
    scores: NDArray[np.floating], target: NDArray[np.bool_], code: NDArray[np.integer], names: Mapping[int, str]
) -> dict[str, Any]:
    """Figures of the trials of each code, by name; groups without both kinds of trial are left out."""
    order = np.argsort(code.astype(np.uint16), kind="stable")  # a radix sort
    ordered = code[order]
    out = {}
    for value, name in names.items():
        low, high = np.searchsorted(ordered, (value, value + 1))
        figures = _figures(scores[order[low:high]], target[order[low:high]]) if low < high else None
        if figures is not None:
            out[name] = figures
    return out


def duration_name(index: int) -> str:
    """The label of a bin of `DURATIONS_S`."""
    low = DURATIONS_S[index]
    return f"{low:g}-{DURATIONS_S[index + 1]:g} s" if index + 1 < len(DURATIONS_S) else f"from {low:g} s"


def evaluate_trials(
    scores: NDArray[np.floating],
    trials: Trials,
    clips: Sequence[Any],
    detail: bool = True,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Figures of one protocol from the score of each trial, or None where there is nothing to compare."""
    targets, nontargets = scores[trials.target], scores[~trials.target]
    if not len(targets) or not len(nontargets):
        return None
    curve = det_curve(targets, nontargets)
    owner = np.array([profile[0] for profile in trials.profiles])[trials.enrol] if trials.profiles else trials.enrol
    out: dict[str, Any] = {"eer": curve.eer(), "targets": len(targets), "nontargets": len(nontargets)}
    out["frr_at_far"] = {f"{far:g}": curve.frr_at_far(far) for far in FARS}
    out["min_dcf"] = {f"{prior:g}": curve.min_dcf(prior) for prior in PRIORS}
    _, speaker = _codes(clip.speaker for clip in clips)
    if resamples:
        # Only the speakers of this protocol are drawn.
        _, dense = np.unique(np.concatenate((speaker[owner], speaker[trials.test])), return_inverse=True)
        first, second = dense[: len(owner)], dense[len(owner) :]
        others = np.stack((first[~trials.target], second[~trials.target]), axis=1)

        def interval(statistic: Callable[[DetCurve], float]) -> list[float]:
            rng = np.random.default_rng(seed)
            low, high, _ = bootstrap_interval(
                targets, nontargets, second[trials.target], others, rng, statistic, resamples
            )
            return [low, high]

        out["eer_interval"] = interval(DetCurve.eer)
        out["frr_at_far_interval"] = {f"{FARS[0]:g}": interval(lambda curve: curve.frr_at_far(FARS[0]))}
    if not detail:
        return out

    emotions, emotion = _codes(clip.emotion for clip in clips)
    genders, gender = _codes(clip.gender for clip in clips)
    first_emotion, second_emotion = emotion[owner], emotion[trials.test]
    if trials.profiles:
        out["by_emotion"] = _grouped(scores, trials.target, second_emotion, dict(enumerate(emotions)))
    else:
        low, high = np.minimum(first_emotion, second_emotion), np.maximum(first_emotion, second_emotion)
        names = {
            i * len(emotions) + j: f"{emotions[i]}/{emotions[j]}"
            for i in range(len(emotions))
            for j in range(i, len(emotions))
        }
        out["by_emotion_pair"] = _grouped(scores, trials.target, low * len(emotions) + high, names)
        by_emotion = {}
        for i, name in enumerate(emotions):
            either = (first_emotion == i) | (second_emotion == i)
            figures = _figures(scores[either], trials.target[either])
            if figures is not None:
                by_emotion[name] = figures
        out["by_emotion"] = by_emotion
    out["by_gender"] = _grouped(
        scores, trials.target, np.maximum(gender[owner], gender[trials.test]),
        {i: name or "not given" for i, name in enumerate(genders)},
    )  # fmt: skip
    seconds = _seconds(clips)
    shorter = seconds[trials.test] if trials.profiles else np.minimum(seconds[owner], seconds[trials.test])
    out["by_duration"] = _grouped(
        scores, trials.target, np.searchsorted(DURATIONS_S, shorter, "right") - 1,
        {i: duration_name(i) for i in range(len(DURATIONS_S))},
    )  # fmt: skip
    return out


def evaluate_embeddings(
    embeddings: NDArray[np.floating],
    manifest: Any,
    protocols: Sequence[str] = PROTOCOLS,
    detail: bool = True,
    resamples: int = 0,
    seed: int = 0,
    max_clips: int = MAX_CLIPS,
) -> dict[str, Any]:
    """Every protocol by cosine.

    Parameters
    ----------
    embeddings : ndarray, shape (clips, dim)
        One row a clip, in the manifest's order; scaled to unit norm here.
    manifest : PreparedSet, EvaluationSet or sequence of clips
        Clips with speaker, gender, emotion, and seconds or samples.
    protocols : sequence of str
        Of `PROTOCOLS`; one without trials of both kinds is left out of the result.
    detail : bool
        Also by emotion, emotion pair, gender and duration.
    resamples : int
        Bootstrap resamples of the speakers for 95 % intervals; 0 for none.
    seed : int
        Of the bootstrap.
    max_clips : int
        A larger set is thinned evenly over speakers and emotions.

    Returns
    -------
    dict
        ``{"clips", "clips_used", "speakers", protocol: {"eer", "targets", "nontargets", "frr_at_far", "min_dcf",
        ["eer_interval"], ["by_emotion", "by_emotion_pair", "by_gender", "by_duration"]}}``; rates are fractions.
    """
    clips: Sequence[Any] = getattr(manifest, "clips", manifest)
    if len(embeddings) != len(clips):
        raise ValueError(f"expected one embedding a clip, got {len(embeddings)} for {len(clips)} clips")
    kept = thin(clips, max_clips)
    used = [clips[i] for i in kept]
    vectors = unit(np.asarray(embeddings)[kept])
    out: dict[str, Any] = {
        "clips": len(clips),
        "clips_used": len(used),
        "speakers": len({clip.speaker for clip in used if clip.speaker}),
    }
    for protocol in protocols:
        trials = make_trials(used, protocol)
        figures = evaluate_trials(trials.scores(vectors), trials, used, detail, resamples, seed)
        if figures is not None:
            out[protocol] = figures
    return out


def open_set(folder: Path) -> EvaluationSet:
    """An evaluation folder (a manifest of audio files) or a prepared set, told apart by the manifest's columns.

    Raises
    ------
    ValueError
        If there is no manifest, or it lacks a column.
    """
    table = folder / "manifest.csv" if folder.is_dir() else folder
    if not table.is_file():
        raise ValueError(f"{folder}: expected a folder with manifest.csv; see `python -m train prepare --help`")
    with open(table, newline="", encoding="utf-8") as rows:
        reader = csv.DictReader(rows)
        columns = set(reader.fieldnames or ())
        if {"start", "samples"} <= columns:
            from .prepare import PreparedSet

            prepared = PreparedSet(table.parent)
            return EvaluationSet(table.parent.name, prepared.clips, prepared.waveform, _seconds(prepared.clips))
        missing = {"path", "speaker", "emotion"} - columns
        if missing:
            raise ValueError(f"{table}: expected the columns path, speaker and emotion; {sorted(missing)} missing")
        clips = [
            EvaluationClip(
                row["path"], row["speaker"], row.get("gender") or "", row["emotion"], float(row.get("seconds") or 0.0)
            )
            for row in reader
        ]
    if not clips:
        raise ValueError(f"{table}: the manifest has a header and no clips")

    def waveform(index: int) -> NDArray[np.float32]:
        from emoinv_edge.audio import read_audio

        return read_audio(table.parent / clips[index].path)[0]

    return EvaluationSet(table.parent.name, clips, waveform, _seconds(clips))


def _thinned(evaluation: EvaluationSet, most: int) -> EvaluationSet:
    """The set itself, or an even part of it (see `thin`)."""
    kept = thin(evaluation.clips, most)
    if len(kept) == len(evaluation.clips):
        return evaluation
    return EvaluationSet(
        evaluation.name,
        [evaluation.clips[i] for i in kept],
        lambda index: evaluation.waveform(int(kept[index])),
        evaluation.seconds[kept],
    )


class EmbeddingCache:
    """Embeddings on disk, keyed by the model's fingerprint and each clip's samples.

    One append-only file a model (and rank), of records hash and float32 vector; a record cut short by a
    stopped process is dropped on the next opening.
    """

    def __init__(self, folder: Path, fingerprint: str, embedding_dim: int, rank: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{fingerprint[:24]}-{embedding_dim}-v{CACHE_FORMAT}"
        self._record = 16 + 4 * embedding_dim
        self._dim = embedding_dim
        self._known: dict[bytes, NDArray[np.float32]] = {}
        self.path = folder / f"{stem}-rank{rank}.bin"
        for path in sorted(folder.glob(f"{stem}-rank*.bin")):
            data = path.read_bytes()
            whole = len(data) // self._record * self._record
            if whole < len(data) and path == self.path:
                with open(path, "r+b") as file:
                    file.truncate(whole)
            for start in range(0, whole, self._record):
                key = data[start : start + 16]
                self._known[key] = np.frombuffer(data, "<f4", embedding_dim, start + 16).astype(np.float32)
        self._file = open(self.path, "ab")  # noqa: SIM115 - closed by close()

    @staticmethod
    def key(waveform: NDArray[np.float32]) -> bytes:
        """The hash of a clip's samples."""
        return hashlib.sha256(np.ascontiguousarray(waveform, "<f4").tobytes()).digest()[:16]

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """The embedding of a clip, or None."""
        return self._known.get(key)

    def put(self, key: bytes, embedding: NDArray[np.float32]) -> None:
        """Remember an embedding; it is on disk when this returns."""
        vector = np.ascontiguousarray(embedding, "<f4")
        if vector.shape != (self._dim,) or not np.isfinite(vector).all():
            raise ValueError(f"expected a finite embedding of shape ({self._dim},), got shape {vector.shape}")
        self._file.write(key + vector.tobytes())
        self._file.flush()
        self._known[key] = vector.astype(np.float32)

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Close the file; what is in memory can still be read."""
        self._file.close()

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def default_cache() -> Path:
    """The folder for embeddings that were computed before."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emoinv-edge" / "embeddings"


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """Something that embeds: a name, what identifies it, and a function from waveform to embedding, of any norm."""

    name: str
    fingerprint: str
    embedding_dim: int
    embed: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    encoder: Any = None  # emoinv_edge.Encoder, where the model is one


def open_model(path: Path, num_threads: int = 1) -> Model:
    """An ONNX file of this project, or a checkpoint of training.

    Raises
    ------
    ValueError
        If the file is missing or neither.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such model; give an .onnx file or a checkpoint of `python -m train fit`")
    if path.suffix == ".onnx":
        from emoinv_edge.encoder import Encoder

        encoder = Encoder(path, num_threads)
        dim, rate = encoder.spec.embedding_dim, encoder.spec.sample_rate

        def embed_speech(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
            embedding, norm = encoder.embed_with_norm(waveform, rate)
            return embedding * np.float32(norm)

        return Model(path.name, encoder.fingerprint, dim, embed_speech, encoder)

    import torch

    from emoinv_edge.features import log_mel, mean_normalise

    from .model import load_checkpoint

    torch.set_num_threads(num_threads)
    model, spec, _ = load_checkpoint(path)
    model = model.eval()

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        features = log_mel(waveform, spec)
        if spec.mean_normalisation:
            features = mean_normalise(features)
        with torch.inference_mode():
            embedding: NDArray[np.float32] = model(torch.from_numpy(features[None])).numpy()[0]
            return embedding

    return Model(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), spec.embedding_dim, embed)


def embed_set(
    model: Model,
    evaluation: EvaluationSet,
    cache: EmbeddingCache | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    indices: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """Embed the clips of a set, or those at `indices`, taking from the cache what it holds.

    Returns
    -------
    ndarray, shape (clips, embedding_dim), float32 of unit norm

    Raises
    ------
    ValueError
        If a clip cannot be read or embedded; the message names it.
    """
    chosen = range(len(evaluation.clips)) if indices is None else indices
    out = np.empty((len(chosen), model.embedding_dim), np.float32)
    for row, index in enumerate(chosen):
        try:
            waveform = evaluation.waveform(index)
            key = EmbeddingCache.key(waveform)
            known = cache.get(key) if cache is not None else None
            if known is None:
                known = model.embed(waveform)
                if cache is not None:
                    cache.put(key, known)
        except Exception as error:
            name = getattr(evaluation.clips[index], "path", index)
            raise ValueError(f"{evaluation.name}, clip {name}: {error}") from error
        out[row] = known
        progress(row + 1, len(chosen))
    return unit(out)


@dataclasses.dataclass(frozen=True, slots=True)
class Speech:
    """A clip as the runtime's verifier sees it: what its speech measures, and the embedding of the speech alone.

    `embedding`, of unit norm, is None where the verifier would give no decision.
    """

    quality: SpeechQuality
    embedding: NDArray[np.float32] | None


def acquire_set(
    model: Model,
    evaluation: EvaluationSet,
    cache: EmbeddingCache | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Speech]:
    """Every clip by the runtime's own path: pauses cut out, quality measured, refused or embedded."""
    from emoinv_edge.quality import measure_quality
    from emoinv_edge.vad import speech_only
    from emoinv_edge.verifier import unusable

    out = []
    for index in range(len(evaluation.clips)):
        waveform = evaluation.waveform(index)
        speech = speech_only(waveform)
        quality = measure_quality(waveform, 16000, speech)
        embedding = None
        if unusable(quality) is None:
            key = EmbeddingCache.key(speech)
            embedding = cache.get(key) if cache is not None else None
            if embedding is None:
                embedding = model.embed(speech)
                if cache is not None:
                    cache.put(key, embedding)
            norm = float(np.linalg.norm(embedding.astype(np.float64)))
            embedding = (embedding / norm).astype(np.float32)
            quality = quality.with_embedding_norm(norm)
        out.append(Speech(quality, embedding))
        progress(index + 1, len(evaluation.clips))
    return out


def evaluate_llr(
    speech: Sequence[Speech], clips: Sequence[Any], calibration: Calibration, resamples: int = 0, seed: int = 0
) -> dict[str, Any] | None:
    """The calibrated decisions as the runtime makes them: enrol on neutral clips, test on every emotion.

    A profile holds the speaker's first four neutral clips that can be enrolled. Neutral tests are the neutral
    clips after those; a speaker who has none is tested with each enrolled clip against the other three.

    Returns
    -------
    dict or None
        ``failure_to_acquire`` (share of clips without a decision), ``failure_to_enrol`` (share of speakers
        without a profile), ``eer``, ``cllr``, ``min_cllr``, ``frr_at_far``, ``thresholds`` (false-accept rate
        asked for -> LLR, actual far and frr, impostor speakers), the same ``by_emotion``, and ``scores`` for
        figures. None where there are no trials of both kinds, or nobody to enrol.
    """
    from emoinv_edge.enrolment import MIN_UTTERANCE_S
    from emoinv_edge.scoring import ProfileBank
    from emoinv_edge.verifier import unusable

    speakers: dict[str, list[int]] = {}
    for i, clip in enumerate(clips):
        if clip.speaker and clip.emotion == "neutral":
            speakers.setdefault(clip.speaker, []).append(i)
    enrolled: dict[str, list[int]] = {}
    for name, indices in speakers.items():
        fit = [i for i in indices if speech[i].embedding is not None]
        fit = [i for i in fit if unusable(speech[i].quality, MIN_UTTERANCE_S) is None][:ENROL_CLIPS]
        if len(indices) >= ENROL_CLIPS and fit:
            enrolled[name] = fit
    candidates = sum(len(indices) >= ENROL_CLIPS for indices in speakers.values())
    if not enrolled:
        return None

    def bank(profiles: Sequence[tuple[str, Sequence[int]]]) -> ProfileBank:
        members = [i for _, indices in profiles for i in indices]
        return ProfileBank.from_arrays(
            [name for name, _ in profiles],
            np.stack([speech[i].embedding for i in members]),  # type: ignore[misc]
            [speech[i].quality for i in members],
            [len(indices) for _, indices in profiles],
            calibration.moods,
        )

    everyone = bank(list(enrolled.items()))
    names = list(enrolled)
    gender_of = {clip.speaker: clip.gender for clip in clips}
    genders = np.array([gender_of[name] for name in names])
    used = {i for indices in enrolled.values() for i in indices}
    spare = {name for name in enrolled if any(i not in used for i in speakers[name])}
    people = {name: k for k, name in enumerate(dict.fromkeys(clip.speaker for clip in clips))}
    owner = np.array([people[name] for name in names])
    parts: list[tuple[NDArray[Any], ...]] = []  # per test clip: llr, target, emotion, profile's and test's speaker
    for i, clip in enumerate(clips):
        embedding = speech[i].embedding
        if not clip.speaker or embedding is None or not clip.emotion:
            continue
        own_clip_enrolled = i in used
        if own_clip_enrolled and (clip.speaker in spare or len(enrolled[clip.speaker]) < 2):
            continue
        tried, _ = calibration.score(everyone, embedding, speech[i].quality)
        if own_clip_enrolled:
            rest = bank([(clip.speaker, [j for j in enrolled[clip.speaker] if j != i])])
            alone, _ = calibration.score(rest, embedding, speech[i].quality)
            tried[names.index(clip.speaker)] = alone[0]
        fits = (genders == clip.gender) | (genders == "") | (clip.gender == "")
        count = int(fits.sum())
        parts.append(
            (tried[fits], owner[fits] == people[clip.speaker], np.full(count, clip.emotion), owner[fits],
             np.full(count, people[clip.speaker]))
        )  # fmt: skip
    if not parts:
        return None
    llrs, target, emotion, profile, tested = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not target.any() or target.all():
        return None

    thresholds = {}
    for far in calibration.far_tables[0].rates:
        if far >= calibration.supported_far:
            thresholds[f"{far:g}"] = calibration.threshold(far).llr

    def figures(chosen: NDArray[np.bool_], intervals: bool) -> dict[str, Any] | None:
        targets, nontargets = llrs[chosen & target], llrs[chosen & ~target]
        if not len(targets) or not len(nontargets):
            return None
        curve = det_curve(targets, nontargets)
        result: dict[str, Any] = {
            "eer": curve.eer(),
            "targets": len(targets),
            "nontargets": len(nontargets),
            "cllr": cllr(targets, nontargets),
            "min_cllr": min_cllr(targets, nontargets),
            "frr_at_far": {f"{far:g}": curve.frr_at_far(far) for far in FARS},
            "min_dcf": {f"{prior:g}": curve.min_dcf(prior) for prior in PRIORS},
            "thresholds": {},
        }
        for name, threshold in thresholds.items():
            far, frr = far_frr_at(targets, nontargets, threshold)
            result["thresholds"][name] = {"llr": threshold, "far": far, "frr": frr}
        if intervals and resamples:
            _, dense = np.unique(np.concatenate((profile[chosen], tested[chosen])), return_inverse=True)
            kinds = target[chosen]
            first, second = dense[: len(kinds)], dense[len(kinds) :]
            others = np.stack((first[~kinds], second[~kinds]), axis=1)

            def interval(statistic: Callable[[DetCurve], float]) -> list[float]:
                rng = np.random.default_rng(seed)
                low, high, _ = bootstrap_interval(targets, nontargets, second[kinds], others, rng, statistic, resamples)
                return [low, high]

            result["eer_interval"] = interval(DetCurve.eer)
            result["frr_at_far_interval"] = {f"{FARS[0]:g}": interval(lambda curve: curve.frr_at_far(FARS[0]))}
            for name, threshold in thresholds.items():
                at = result["thresholds"][name]
                rng = np.random.default_rng(seed)
                at_far, at_frr = bootstrap_far_frr(
                    targets, nontargets, threshold, second[kinds], others, rng, resamples
                )
                at["far_interval"], at["frr_interval"] = list(at_far[:2]), list(at_frr[:2])
        return result

    mood = figures(emotion != "neutral", True)
    out: dict[str, Any] = {
        "failure_to_acquire": float(np.mean([s.embedding is None for s in speech])),
        "failure_to_enrol": 1.0 - len(enrolled) / candidates,
        "num_impostor_speakers": calibration.num_impostor_speakers,
        "supported_far": calibration.supported_far,
        "enrol": mood,
        "by_emotion": {},
    }
    for name in sorted(set(emotion.tolist())):
        result = figures(emotion == name, name == "neutral")
        if result is not None:
            out["by_emotion"][name] = result
    chosen = emotion != "neutral" if mood is not None else np.ones(len(llrs), bool)
    out["reliability"] = reliability(llrs[chosen & target], llrs[chosen & ~target])
    return out


def reliability(targets: NDArray[np.floating], nontargets: NDArray[np.floating], bins: int = 15) -> list[list[float]]:
    """Said against found: the LLR that each bin claims, the LLR that its counts show, targets and non-targets in it.

    Bins hold equal numbers of targets and non-targets together, weighted so that both kinds count alike.
    """
    llrs = np.concatenate((targets, nontargets))
    shares = (0.5 / len(targets), 0.5 / len(nontargets))
    weight = np.repeat(shares, (len(targets), len(nontargets)))
    kind = np.concatenate((np.ones(len(targets), bool), np.zeros(len(nontargets), bool)))
    order = np.argsort(llrs, kind="stable")
    place = np.minimum((np.cumsum(weight[order]) * bins).astype(int), bins - 1)
    out = []
    for k in range(bins):
        chosen = order[place == k]
        num_targets, num_nontargets = int(kind[chosen].sum()), int((~kind[chosen]).sum())
        if num_targets and num_nontargets:
            found = math.log(num_targets / len(targets)) - math.log(num_nontargets / len(nontargets))
            # What the bin's LLRs together say of its mixture; their mean would look too sure in the outer bins.
            share = float(np.average(1.0 / (1.0 + np.exp(-np.clip(llrs[chosen], -500, 500))), weights=weight[chosen]))
            said = math.log(share) - math.log1p(-share)
            out.append([said, found, num_targets, num_nontargets])
    return out


def det_points(scores: NDArray[np.floating], target: NDArray[np.bool_], points: int = 120) -> list[list[float]]:
    """A DET curve thinned for drawing: [far, frr] at thresholds that are even on the curve's own scale."""
    curve = det_curve(scores[target], scores[~target])
    inside = np.flatnonzero((curve.far > 0) & (curve.frr > 0) & (curve.far < 1) & (curve.frr < 1))
    if not len(inside):
        return []
    length = np.log(curve.frr[inside]) - np.log(curve.far[inside])
    wanted = np.linspace(length[0], length[-1], points)
    chosen = np.unique(inside[np.clip(np.searchsorted(length, wanted), 0, len(inside) - 1)])
    return [[float(curve.far[k]), float(curve.frr[k])] for k in chosen]


def evaluate_model(
    model_path: Path,
    folders: Sequence[Path],
    resamples: int = 1000,
    seed: int = 0,
    num_threads: int = 1,
    max_clips: int | None = None,
    cache_folder: Path | None = None,
    use_cache: bool = True,
    llr: bool = True,
    progress: Callable[[str], Callable[[int, int], None]] = lambda name: lambda done, total: None,
) -> dict[str, Any] | None:
    """Everything that `python -m train evaluate` prints: the model, and the figures of each set.

    Under ``torchrun`` each rank embeds its share of the clips into the cache; rank 0 goes on, the others return None.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not use_cache:
        raise ValueError("several processes share their embeddings through the cache; leave --no-cache out")
    whole = [open_set(folder) for folder in folders]
    counts = [len(evaluation.clips) for evaluation in whole]
    sets = [_thinned(evaluation, max_clips or MAX_CLIPS) for evaluation in whole]
    names = [evaluation.name for evaluation in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"the sets' folder names tell them apart, got {names}; rename one or give it once")
    model = open_model(model_path, num_threads)
    folder = cache_folder if cache_folder is not None else default_cache()
    results: dict[str, Any] = {"model": model.name, "fingerprint": model.fingerprint, "sets": {}}
    if world > 1:
        with EmbeddingCache(folder, model.fingerprint, model.embedding_dim, rank) as cache:
            for evaluation in sets:
                share = range(rank, len(evaluation.clips), world)
                embed_set(model, evaluation, cache, progress(f"{evaluation.name}, rank {rank}"), share)
        from .distributed import barrier

        barrier()
        if rank != 0:
            return None
    cache = EmbeddingCache(folder, model.fingerprint, model.embedding_dim, rank) if use_cache else None
    try:
        for evaluation, num_clips in zip(sets, counts, strict=True):
            embeddings = embed_set(model, evaluation, cache, progress(evaluation.name))
            result = evaluate_embeddings(embeddings, evaluation, resamples=resamples, seed=seed, max_clips=num_clips)
            result["clips"] = num_clips
            result["det"] = {}
            for protocol in PROTOCOLS:
                if protocol in result:
                    trials = make_trials(evaluation.clips, protocol)
                    result["det"][protocol] = det_points(trials.scores(embeddings), trials.target)
            calibration = model.encoder.calibration if model.encoder is not None else None
            if llr and calibration is not None:
                speech = acquire_set(model, evaluation, cache, progress(f"{evaluation.name}, speech alone"))
                judged = evaluate_llr(speech, evaluation.clips, calibration, resamples, seed)
                if judged is not None:
                    result["llr"] = judged
            results["sets"][evaluation.name] = result
    finally:
        if cache is not None:
            cache.close()
    return results


def _percent(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None or math.isnan(value):
        return "-"
    text = f"{100 * value:.2f}"
    return f"{text} [{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]" if interval else text


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A plain table of the sets' figures in percent, one line a set and protocol."""
    header = ("set", "protocol", "EER %", "FRR % at FAR 1 %", "minDCF 0.01", "minDCF 0.05", "targets", "non-targets")
    rows = [header]
    for name, result in results.items():
        for protocol in PROTOCOLS:
            if protocol in result:
                figures = result[protocol]
                frr_interval = figures.get("frr_at_far_interval", {}).get("0.01")
                rows.append(
                    (
                        name, protocol, _percent(figures["eer"], figures.get("eer_interval")),
                        _percent(figures["frr_at_far"]["0.01"], frr_interval),
                        f"{figures['min_dcf']['0.01']:.3f}", f"{figures['min_dcf']['0.05']:.3f}",
                        str(figures["targets"]), str(figures["nontargets"]),
                    )
                )  # fmt: skip
        for part in ("enrol", "neutral"):
            llr = result.get("llr")
            figures = llr and (llr["enrol"] if part == "enrol" else llr["by_emotion"].get("neutral"))
            if figures:
                rows.append(
                    (
                        name, f"{part} LLR", _percent(figures["eer"], figures.get("eer_interval")),
                        _percent(figures["frr_at_far"]["0.01"], figures.get("frr_at_far_interval", {}).get("0.01")),
                        f"{figures['min_dcf']['0.01']:.3f}", f"{figures['min_dcf']['0.05']:.3f}",
                        str(figures["targets"]), str(figures["nontargets"]),
                    )
                )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    for name, result in results.items():
        if "llr" in result:
            lines += ["", *_llr_lines(name, result["llr"])]
    return "\n".join(lines)


def _llr_lines(name: str, llr: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{name}: log-likelihood ratios as the runtime makes them; no decision on "
        f"{_percent(llr['failure_to_acquire'])} % of the clips, no profile for {_percent(llr['failure_to_enrol'])} % "
        f"of the speakers; rates below {_percent(llr['supported_far'])} % are not supported"
    ]
    parts = ([("moods together", llr["enrol"])] if llr["enrol"] else []) + list(llr["by_emotion"].items())
    for part, figures in parts:
        at = ", ".join(
            f"at {100 * float(rate):g} %: FAR {_percent(point['far'], point.get('far_interval'))} "
            f"FRR {_percent(point['frr'], point.get('frr_interval'))}"
            for rate, point in _told(figures["thresholds"])
        )
        lines.append(
            f"  {part:<15} EER {_percent(figures['eer'])}  Cllr {figures['cllr']:.3f} (least {figures['min_cllr']:.3f})"
            f"  {at}"
        )
    return lines


def _told(thresholds: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The rates that the table has room for: 10 %, 5 % and the lowest; JSON and the report have them all."""
    lowest = min(thresholds, key=float, default=None)
    return [(rate, point) for rate, point in thresholds.items() if rate in ("0.1", "0.05", lowest)]
