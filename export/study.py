"""What each way of making up for rounding costs and gains.

Two tables: the schemes beside each other (cosine to float, EER of each set, size, time), and the layers one
by one, each rounded alone while the rest stays in float.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from emoinv_edge.machine import processor
from emoinv_edge.session import import_onnxruntime, open_session
from emoinv_edge.spec import EncoderSpec
from train.evaluation.figures import table_markdown
from train.model import ResidualEncoder, load_start
from train.progress import Progress

from . import gates
from .chain import quantise
from .graph import FEATURES, Affine, QuantisedWeights, encoder_graph, layers
from .quantise import Scheme, choose_ranges, observe, round_weights
from .speech import Portion, take_portion

__all__ = ["SCHEMES", "compare_schemes", "report", "sensitivity", "study"]

SCHEMES: dict[str, Scheme] = {
    "as it is": Scheme(),
    "bias corrected": Scheme(correction="bias"),
    "equalised 0.5": Scheme(equalisation=0.5),
    "equalised 0.5, bias corrected": Scheme(equalisation=0.5, correction="bias"),
}
SPEED_ROUNDS = 15


def compare_schemes(
    model: ResidualEncoder,
    spec: EncoderSpec,
    fit: Portion,
    held: Portion,
    trials: Portion,
    log: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """One row for float and for each of `SCHEMES`."""
    exact_graph = encoder_graph(model, spec)
    exact, exact_trials = (gates.embed_portion(exact_graph, portion) for portion in (held, trials))
    size = len(exact_graph.SerializeToString())
    rows: list[dict[str, Any]] = [{"scheme": "float", "mean": 1.0, "min": 1.0, "mb": size / 1e6, "ratio": 1.0}]
    observed = observe(model, spec, fit.features)
    for name, scheme in SCHEMES.items():
        graph = quantise(model, spec, fit, scheme, observed=observed)
        cosine = gates.compare_embeddings(exact, gates.embed_portion(graph, held)).figures
        error = gates.compare_eer(trials, exact_trials, gates.embed_portion(graph, trials)).figures["eer_percent"]
        speed = gates.compare_speed(exact_graph, graph, held.features, SPEED_ROUNDS).figures
        rows[0].setdefault("ms", speed["fp32_ms"])
        rows[0].setdefault("eer", {corpus: figures["fp32"] for corpus, figures in error.items()})
        rows.append(
            {
                "scheme": name,
                "mean": cosine["mean"],
                "min": cosine["min"],
                "eer": {corpus: figures["int8"] for corpus, figures in error.items()},
                "mb": len(graph.SerializeToString()) / 1e6,
                "ms": speed["int8_ms"],
                "ratio": speed["ratio"],
            }
        )
        log(f"{name}: {rows[-1]}")
    return rows


def sensitivity(
    model: ResidualEncoder,
    spec: EncoderSpec,
    fit: Portion,
    features: NDArray[np.float32],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, tuple[float, float]]:
    """Mean of 1 - cosine when one layer's weights alone, or its output alone, is rounded; the largest first."""
    activations = choose_ranges(observe(model, spec, fit.features))
    weights = round_weights(model, in_float=())
    exact = _embed(encoder_graph(model, spec), features)
    names = [*(layer.name for layer in layers(model)), "linear"]
    out = {}
    for i, name in enumerate(names):
        alone: list[tuple[dict[str, Affine], dict[str, QuantisedWeights]]]
        alone = [({}, {name: weights[name]} if name in weights else {}), (_only(activations, name), {})]
        if name == "linear":  # its weights are written in int8 where its input is rounded too
            alone = [({"statistics": activations["statistics"]}, {name: weights[name]}), ({}, {})]
        losses = [
            float(1.0 - np.sum(exact * _embed(encoder_graph(model, spec, *chosen), features), axis=1).mean())
            if any(chosen)
            else 0.0
            for chosen in alone
        ]
        out[name] = (losses[0], losses[1])
        progress(i + 1, len(names))
    return dict(sorted(out.items(), key=lambda item: -sum(item[1])))


def _only(activations: Mapping[str, Affine], name: str) -> dict[str, Affine]:
    return {name: activations[name]} if name in activations else {}


def _embed(graph: onnx.ModelProto, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Unit embeddings by the graph as written; the optimiser may round a float layer that lies between int8 ones."""
    session = open_session(graph.SerializeToString(), optimise=False)
    raw = np.concatenate([session.run(None, {FEATURES: clip[np.newaxis]})[0] for clip in features]).astype(np.float64)
    return np.asarray(raw / np.linalg.norm(raw, axis=1, keepdims=True))


def report(rows: Sequence[dict[str, Any]], layer_losses: dict[str, tuple[float, float]], about: str) -> str:
    """The two tables as Markdown."""
    corpora = list(rows[0]["eer"])
    head = ["scheme", "cosine mean", "minimum", *(f"EER {corpus} %" for corpus in corpora), "MB", "ms", "x float"]
    schemes = [
        [row["scheme"], f"{row['mean']:.4f}", f"{row['min']:.4f}", *(f"{row['eer'][corpus]:.2f}" for corpus in corpora),
         f"{row['mb']:.2f}", f"{row['ms']:.1f}", f"{row['ratio']:.2f}"]
        for row in rows
    ]  # fmt: skip
    items = list(layer_losses.items())
    rest = np.array([losses for _, losses in items[10:]]).reshape(-1, 2).sum(axis=0)
    shown = [*items[:10], (f"the other {max(0, len(items) - 10)}", tuple(rest))]
    by_layer = [[name, f"{1e3 * of_weights:.3f}", f"{1e3 * of_output:.3f}"] for name, (of_weights, of_output) in shown]
    return (
        f"# Quantisation\n\n{about}\n\n## Schemes\n\n{table_markdown(head, schemes)}\n\n## One layer at a time\n\n"
        "Mean of 1 - cosine, in thousandths; the ten largest and the rest together.\n\n"
        f"{table_markdown(['layer', 'its weights in int8', 'its output in 8 bits'], by_layer)}\n"
    )


def study(
    checkpoint: Path, speech: Sequence[Path], fit_clips: int, held_clips: int, eer_clips: int, layer_clips: int
) -> str:
    """Measure all of it for one checkpoint; the report in Markdown."""
    torch.set_num_threads(1)
    model, spec, _ = load_start(checkpoint)
    model.eval()
    fit = take_portion(speech, spec, fit_clips, held_back=False)
    held = take_portion(speech, spec, held_clips, held_back=True)
    trials = take_portion(speech, spec, eer_clips, held_back=True, altered=False, per_speaker=6)
    rows = compare_schemes(model, spec, fit, held, trials, lambda line: print(line, file=sys.stderr, flush=True))
    every = max(1, len(held.features) // layer_clips)
    losses = sensitivity(model, spec, fit, held.features[::every][:layer_clips], Progress("layers"))
    about = (
        f"`{checkpoint.parent.name}` ({spec.name}); ranges from {len(fit.features)} clips, cosine on "
        f"{len(held.features)} held-back clips (half of them altered: quiet, clipped, noisy), EER on "
        f"{len(trials.features)} clips ({', '.join(dict.fromkeys(trials.corpus))}) of speakers that the ranges did not "
        f"see. Time: one thread, 3 s, ratio to the float graph taken in turn; {processor()[0]}, {platform.machine()}, "
        f"ONNX Runtime {import_onnxruntime().__version__}."
    )
    return report(rows, losses, about)
