"""Error rates of encoders on the evaluation speech: by protocol, by emotion, by condition and by seconds of speech.

Plain cosine for everybody, by the protocols of `train.evaluation`; for our own models also the calibrated score
that the runtime decides by.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from train.commands.evaluate import evaluate_model
from train.evaluation.clips import EvaluationSet, open_set
from train.evaluation.decisions import evaluate_decisions
from train.evaluation.embeddings import EmbeddingCache, hear_set, open_model
from train.evaluation.metrics import det_curve
from train.evaluation.protocols import PROTOCOLS, evaluate_embeddings, make_trials
from train.evaluation.report import det_points

from .conditions import CONDITIONS, DURATIONS
from .workers import Worker

__all__ = ["calibrated", "enrolment", "measure", "robustness"]

# The protocols that a set has trials for.
SETS = {"ravdess": PROTOCOLS, "librispeech": ("same",), "alphanumeric": ("same",)}
EMOTIONAL = "ravdess"
BY_SECONDS = ("librispeech", "alphanumeric")
RESAMPLES = 500
DET_POINTS = 160

Progress = Callable[[str], None]


def embed(
    worker: Worker, folder: Path, cache: Path, condition: str = "clean", indices: Sequence[int] | None = None
) -> NDArray[np.float32]:
    """Rows of unit norm, one a clip of the evaluation folder (or of `indices`), by a worker."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "rows.npy"
        chosen = None if indices is None else [int(index) for index in indices]
        worker.ask(
            op="embed_set", folder=str(folder.resolve()), condition=condition, cache=str(cache.resolve()),
            out=str(out), indices=chosen,
        )  # fmt: skip
        rows: NDArray[np.float32] = np.load(out)
    return rows


def measure(worker: Worker, evaluation: Path, cache: Path, progress: Progress = lambda text: None) -> dict[str, Any]:
    """Every protocol of every set that is there.

    Returns
    -------
    dict
        Set -> protocol -> figures (fractions). ``enrol`` has 95 % intervals over speakers, the DET curve, and by
        emotion the EER, and the FRR at the one threshold that accepts 1 % of all its impostor trials.
    """
    out: dict[str, Any] = {}
    for name, protocols in SETS.items():
        folder = evaluation / name
        if not folder.is_dir():
            continue
        progress(f"{worker.name}: {name}")
        clips = open_set(folder)
        rows = embed(worker, folder, cache)
        figures = evaluate_embeddings(rows, clips, protocols, detail=False)
        if "enrol" in protocols:
            enrol = evaluate_embeddings(rows, clips, ("enrol",), detail=True, resamples=RESAMPLES)["enrol"]
            trials = make_trials(clips.clips, "enrol")
            scores = trials.scores(rows)
            curve = det_curve(scores[trials.target], scores[~trials.target])
            threshold = curve.threshold[np.flatnonzero(curve.far <= 0.01 * (1.0 + 1e-12))[0]]
            emotion = np.array([clip.emotion for clip in clips.clips])[trials.test]
            for each, found in enrol["by_emotion"].items():
                own = scores[trials.target & (emotion == each)]
                found["frr_at_far"] = {"0.01": float(np.mean(own < threshold))}
            figures["enrol"] = {k: v for k, v in enrol.items() if k not in ("by_gender", "by_duration")}
            figures["enrol"]["det"] = [
                [round(rate, 6) for rate in point] for point in det_points(scores, trials.target, DET_POINTS)
            ]
        out[name] = figures
    return out


def calibrated(path: Path, evaluation: Path, cache: Path) -> dict[str, Any] | None:
    """The ``enrol`` figures of one of our models by its calibrated score, as the runtime decides; None without."""
    model = open_model(path)
    folder = evaluation / EMOTIONAL
    if model.encoder is None or model.encoder.calibration is None or not folder.is_dir():
        return None
    clips = open_set(folder)
    with EmbeddingCache(cache, model.fingerprint, model.embedding_dim) as known:
        heard = hear_set(model, clips, known)
    figures = evaluate_decisions(heard, clips.clips, model.encoder.calibration, RESAMPLES)
    if figures is None or figures["enrol"] is None:
        return None
    out = {key: figures["enrol"][key] for key in ("eer", "eer_interval", "frr_at_far", "cllr", "thresholds")}
    return {**out, "failure_to_acquire": figures["failure_to_acquire"]}


def enrolment(path: Path, evaluation: Path, cache: Path) -> dict[str, Any] | None:
    """The figures of ``python -m train evaluate --enrolment`` of one of our models, by set; None without."""
    folder = evaluation / EMOTIONAL
    if Encoder.open(path).calibration is None or not folder.is_dir():
        return None
    found = evaluate_model(path, [folder], cache_folder=cache, enrolment=True)
    return None if found is None else {name: each["enrolment"] for name, each in found["sets"].items()}


def split_enrol(clips: EvaluationSet) -> tuple[list[int], list[int]]:
    """Clips of the profiles, and every second test clip of each speaker and emotion (half the work, every speaker)."""
    trials = make_trials(clips.clips, "enrol")
    profiles = [index for profile in trials.profiles for index in profile]
    tests, seen = [], dict[tuple[str, str], int]()
    for index in sorted(set(trials.test.tolist())):
        clip = clips.clips[index]
        cell = (clip.speaker, clip.emotion)
        seen[cell] = seen.get(cell, -1) + 1
        if seen[cell] % 2 == 0:
            tests.append(index)
    return profiles, tests


def robustness(
    worker: Worker,
    evaluation: Path,
    cache: Path,
    conditions: Sequence[str] = tuple(CONDITIONS),
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """EER with clean profiles and degraded tests, and with tests of so many seconds.

    Returns
    -------
    dict
        ``{"conditions": {name: {"eer", "frr_at_far"}}, "seconds": {set: {"0.5": eer, ...}}}``
    """
    out: dict[str, Any] = {"conditions": {}, "seconds": {}}
    folder = evaluation / EMOTIONAL
    if folder.is_dir():
        clips = open_set(folder)
        trials = make_trials(clips.clips, "enrol")
        profiles, tests = split_enrol(clips)
        sides = embed(worker, folder, cache, indices=profiles).reshape(len(trials.profiles), -1, worker.about["dim"])
        means = sides.mean(axis=1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        kept = np.isin(trials.test, tests)
        column = np.searchsorted(tests, trials.test[kept])
        target = trials.target[kept]
        for condition in conditions:
            progress(f"{worker.name}: {condition}")
            rows = embed(worker, folder, cache, condition, tests)
            scores = np.sum(means[trials.enrol[kept]] * rows[column], axis=1)
            curve = det_curve(scores[target], scores[~target])
            out["conditions"][condition] = {"eer": curve.eer(), "frr_at_far": {"0.01": curve.frr_at_far(0.01)}}
        out["trials"] = {"targets": int(target.sum()), "nontargets": int((~target).sum())}
    for name in BY_SECONDS:
        folder = evaluation / name
        if not folder.is_dir():
            continue
        clips = open_set(folder)
        trials = make_trials(clips.clips, "same")
        whole = embed(worker, folder, cache)
        by_seconds = {}
        for condition, seconds in DURATIONS.items():
            progress(f"{worker.name}: {name}, {condition}")
            short = embed(worker, folder, cache, condition)
            # Both directions of each pair: whole profile against short test.
            scores = np.concatenate(
                [
                    np.sum(whole[trials.enrol] * short[trials.test], axis=1),
                    np.sum(whole[trials.test] * short[trials.enrol], axis=1),
                ]
            )
            target = np.concatenate([trials.target, trials.target])
            by_seconds[f"{seconds:g}"] = det_curve(scores[target], scores[~target]).eer()
        out["seconds"][name] = by_seconds
    return out
