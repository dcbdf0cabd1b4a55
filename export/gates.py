"""The gates of the export: what is measured, and what it must be."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.golden import run_golden
from emoinv_edge.session import open_session
from emoinv_edge.spec import EncoderSpec
from train.evaluation.metrics import eer
from train.model import SpeakerNet

from .graph import FEATURES
from .speech import Portion

__all__ = [
    "EER_LOSS",
    "PARITY_FRAMES",
    "SIZE_MB",
    "Gate",
    "GateFailed",
    "compare_eer",
    "compare_embeddings",
    "compare_speed",
    "compare_with_torch",
    "embed_portion",
    "file_size",
    "golden",
    "time_sessions",
]

PARITY = 1e-4
PARITY_FRAMES = (48, 100, 298, 500, 801)
MEAN_COSINE, MIN_COSINE = 0.99, 0.95
EER_LOSS = 0.2  # points of per cent
SPEED_UP = 2.3
SIZE_MB = {"base": 8.0, "small": 3.0, "large": 18.0}
MEGABYTE = 1e6


@dataclasses.dataclass(frozen=True, slots=True)
class Gate:
    """One gate: its name, whether it opened, what was measured in words, and the figures."""

    name: str
    passed: bool
    measured: str
    figures: Mapping[str, Any]

    def line(self) -> str:
        """One line for people."""
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.measured}"


class GateFailed(RuntimeError):
    """A gate did not open; nothing was written."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(f"{gate.line()}; nothing was written")
        self.gate = gate


def compare_with_torch(model: SpeakerNet, spec: EncoderSpec, graph: onnx.ModelProto) -> Gate:
    """Float graph against torch at five lengths: the largest difference of an embedding's values."""
    rng = np.random.default_rng(0)
    session = open_session(graph.SerializeToString())
    differences = {}
    for frames in PARITY_FRAMES:
        features = rng.normal(0.0, 3.0, (1, frames, spec.num_mel_bins)).astype(np.float32)
        features -= features.mean(axis=1, keepdims=True)
        with torch.no_grad():
            expected = model.eval()(torch.from_numpy(features)).numpy()
        differences[str(frames)] = float(np.abs(session.run(None, {FEATURES: features})[0] - expected).max())
    worst = max(differences.values())
    return Gate(
        "float graph equals torch",
        worst <= PARITY,
        f"max |difference| {worst:.1e} over {len(PARITY_FRAMES)} lengths (at most {PARITY:.0e})",
        {"max_difference": worst, "by_frames": differences},
    )


def embed_portion(
    graph: onnx.ModelProto, portion: Portion, progress: Callable[[int, int], None] = lambda done, total: None
) -> NDArray[np.float32]:
    """Embeddings of every clip of a portion, of unit norm, (clips, embedding_dim)."""
    session = open_session(graph.SerializeToString())
    out = []
    for i, clip in enumerate(portion.features):
        embedding = session.run(None, {FEATURES: clip[np.newaxis]})[0][0]
        out.append(embedding / np.linalg.norm(embedding))
        progress(i + 1, len(portion.features))
    return np.asarray(out, np.float32)


def compare_embeddings(exact: NDArray[np.float32], ours: NDArray[np.float32]) -> Gate:
    """Cosine of int8 to float embeddings on held-back clips."""
    cosines = (exact.astype(np.float64) * ours).sum(axis=1)
    mean, least = float(cosines.mean()), float(cosines.min())
    return Gate(
        "int8 agrees with float",
        mean >= MEAN_COSINE and least >= MIN_COSINE,
        f"cosine mean {mean:.4f} (at least {MEAN_COSINE}), least {least:.4f} (at least {MIN_COSINE}), "
        f"{len(cosines)} held-back clips",
        {"mean": mean, "min": least, "percentile_5": float(np.percentile(cosines, 5)), "clips": len(cosines)},
    )


def compare_eer(portion: Portion, exact: NDArray[np.float32], ours: NDArray[np.float32]) -> Gate:
    """EER of int8 and float on each development set (all pairs of one set), in per cent."""
    figures = {}
    for corpus in dict.fromkeys(portion.corpus):
        mine = np.array([i for i, name in enumerate(portion.corpus) if name == corpus and portion.speaker[i]], int)
        speakers = np.array([portion.speaker[i] for i in mine])
        left, right = np.triu_indices(len(mine), 1)
        target = speakers[left] == speakers[right]
        if len(target) == 0 or target.all() or not target.any():
            continue
        scores = [(vectors[mine[left]] * vectors[mine[right]]).sum(axis=1) for vectors in (exact, ours)]
        fp32, int8 = (100.0 * eer(s[target], s[~target]) for s in scores)
        figures[corpus] = {"fp32": round(fp32, 3), "int8": round(int8, 3), "targets": int(target.sum())}
    worst = max((f["int8"] - f["fp32"] for f in figures.values()), default=0.0)
    by_corpus = ", ".join(f"{name} {f['fp32']:.2f} -> {f['int8']:.2f}" for name, f in figures.items())
    return Gate(
        "EER kept",
        worst <= EER_LOSS + 1e-9,
        f"worst loss {worst:+.2f} points (at most {EER_LOSS}); EER % float -> int8: {by_corpus}",
        {"worst_loss": worst, "eer_percent": figures},
    )


def time_sessions(graphs: Sequence[onnx.ModelProto], features: NDArray[np.float32], rounds: int) -> NDArray[np.float64]:
    """Seconds of each graph on the same clips in turn, (rounds, graphs); one thread, the order alternating."""
    sessions = [open_session(graph.SerializeToString()) for graph in graphs]
    taken = np.empty((rounds, len(graphs)))
    for r in range(-2, rounds):  # two rounds to warm up
        feed = {FEATURES: features[r % len(features)][np.newaxis]}
        order = range(len(sessions)) if r % 2 else range(len(sessions) - 1, -1, -1)
        for m in order:
            start = time.perf_counter()
            sessions[m].run(None, feed)
            if r >= 0:
                taken[r, m] = time.perf_counter() - start
    return taken


def compare_speed(
    exact: onnx.ModelProto, ours: onnx.ModelProto, features: NDArray[np.float32], rounds: int = 31
) -> Gate:
    """Time of float over time of int8: the median of ratios taken in turn, so that a busy machine matters little."""
    taken = time_sessions([exact, ours], features, rounds)
    ratio = float(np.median(taken[:, 0] / taken[:, 1]))
    fp32_ms, int8_ms = (1e3 * float(t) for t in np.median(taken, axis=0))
    seconds = features.shape[1] / 100.0
    return Gate(
        "int8 is faster",
        ratio >= SPEED_UP,
        f"{ratio:.2f} times (at least {SPEED_UP}): {fp32_ms:.1f} -> {int8_ms:.1f} ms for {seconds:.0f} s, one thread",
        {"ratio": ratio, "fp32_ms": fp32_ms, "int8_ms": int8_ms, "frames": features.shape[1]},
    )


def file_size(name: str, size: int) -> Gate:
    """Size of the file against the budget of the tier `name`; tiers that are not ours have that of base."""
    budget = SIZE_MB.get(name, SIZE_MB["base"])
    return Gate(
        "file fits",
        size <= budget * MEGABYTE,
        f"{size / MEGABYTE:.2f} MB (at most {budget:g})",
        {"bytes": size, "budget_mb": budget},
    )


def golden(encoder: Encoder) -> Gate:
    """The file's own golden test on this processor."""
    results = run_golden(encoder)
    least = min(result.cosine for result in results)
    return Gate("golden test", all(result.passed for result in results), f"least cosine {least:.6f}", {"least": least})
