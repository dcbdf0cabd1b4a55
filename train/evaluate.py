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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .metrics import DetCurve, bootstrap_interval, det_curve

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
CACHE_FORMAT = 1


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
    speaker_names, speaker = _codes(clip.speaker for clip in clips)
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
        self._file = open(self.path, "ab")

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
    """Something that embeds: a name, what identifies it, and a function from waveform to embedding."""

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
        return Model(path.name, encoder.fingerprint, dim, lambda waveform: encoder.embed(waveform, rate), encoder)

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
            return unit(model(torch.from_numpy(features[None])).numpy())[0]

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
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if i < 2 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
