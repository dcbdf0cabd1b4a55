"""What each way of quantising costs and gains: ``python -m export.study CHECKPOINT --speech SET... -o RESULTS.md``.

Two tables: the schemes beside each other (cosine to float, EER of each set, size, time), and the layers one
by one, each rounded alone while the rest stays in float.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from emoinv_edge.spec import EncoderSpec
from train.model import ResidualEncoder, load_checkpoint
from train.progress import Progress

from . import gates
from .chain import _machine, quantise
from .frontend import add_frontend
from .graph import FEATURES, Affine, QuantisedWeights, encoder_graph, layers
from .quantise import Scheme, choose_ranges, observe, round_weights
from .session import open_session
from .speech import Portion, take_portion

__all__ = ["SCHEMES", "compare_schemes", "sensitivity"]

SCHEMES: dict[str, Scheme] = {
    "MinMax": Scheme(ranges="minmax"),
    "entropy": Scheme(ranges="entropy"),
    "percentile 99.999": Scheme(ranges="percentile"),
    "least square error": Scheme(ranges="mse"),
    "balanced (shipped)": Scheme(),
    "balanced, bias corrected": Scheme(correction="bias"),
    "balanced, equalised 0.5": Scheme(equalisation=0.5),
    "balanced, equalised 0.5, bias corrected": Scheme(equalisation=0.5, correction="bias"),
    "balanced, S8S8": Scheme(activations="int8"),
    "balanced, 7-bit weights": Scheme(weight_bits=7),
}
DYNAMIC_CLIPS = 8
SPEED_ROUNDS = 15


def compare_schemes(
    model: ResidualEncoder,
    spec: EncoderSpec,
    fit: Portion,
    held: Portion,
    trials: Portion,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """One row for float, for `quantize_dynamic` and for each of `SCHEMES`."""
    exact_graph = encoder_graph(model, spec)
    exact, exact_trials = (gates.embed_portion(exact_graph, portion) for portion in (held, trials))
    size = len(exact_graph.SerializeToString())
    rows: list[dict[str, Any]] = [{"scheme": "float", "mean": 1.0, "min": 1.0, "mb": size / 1e6, "ratio": 1.0}]
    rows.append(_dynamic_row(exact_graph, held, exact))
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
        say(f"{name}: {rows[-1]}")
    return rows


def _dynamic_row(exact_graph: onnx.ModelProto, held: Portion, exact: NDArray[np.float32]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "dynamic.onnx"
        onnx.save(exact_graph, source)
        quantize_dynamic(source, target, per_channel=False, weight_type=QuantType.QUInt8)
        few = dataclasses.replace(held, features=held.features[:DYNAMIC_CLIPS])
        cosine = (exact[:DYNAMIC_CLIPS] * gates.embed_portion(target, few)).sum(axis=1)
        taken = gates.time_sessions([exact_graph, onnx.load(target)], held.features, 3)
        ratio = float(np.median(taken[:, 0] / taken[:, 1]))
        return {
            "scheme": "dynamic (quantize_dynamic)",
            "mean": float(cosine.mean()),
            "min": float(cosine.min()),
            "mb": target.stat().st_size / 1e6,
            "ms": 1e3 * float(np.median(taken[:, 1])),
            "ratio": ratio,
        }


def sensitivity(
    model: ResidualEncoder,
    spec: EncoderSpec,
    fit: Portion,
    features: NDArray[np.float32],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, tuple[float, float]]:
    """Mean of 1 - cosine when one layer's weights alone, or its output alone, is rounded; the largest first."""
    scheme = Scheme()
    activations = choose_ranges(observe(model, spec, fit.features), scheme)
    weights = round_weights(model, dataclasses.replace(scheme, in_float=()))
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
    session = open_session(graph, optimise=False)
    raw = np.concatenate([session.run(None, {FEATURES: clip[np.newaxis]})[0] for clip in features]).astype(np.float64)
    return np.asarray(raw / np.linalg.norm(raw, axis=1, keepdims=True))


def waveform_cost(
    model: ResidualEncoder, spec: EncoderSpec, fit: Portion, rounds: int = SPEED_ROUNDS
) -> dict[str, float]:
    """Time of `Encoder.embed` on 3 s with features outside and inside the graph, and the sizes."""
    import time

    from emoinv_edge.encoder import Encoder

    from .chain import write_model

    graph = quantise(model, spec, fit, Scheme())
    rng = np.random.default_rng(0)
    waveform = (0.1 * rng.standard_normal(3 * spec.sample_rate)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        encoders = []
        for name, each in (("features", graph), ("waveform", add_frontend(graph, spec))):
            write_model(Path(folder) / name, each, {"emoinv.spec": spec.to_json()})
            encoders.append(Encoder(Path(folder) / name))
        taken = np.empty((rounds, 2))
        embeddings = [encoder.embed(waveform, spec.sample_rate) for encoder in encoders]
        for r in range(rounds):
            for e in (0, 1) if r % 2 else (1, 0):
                start = time.perf_counter()
                encoders[e].embed(waveform, spec.sample_rate)
                taken[r, e] = time.perf_counter() - start
        return {
            "two_step_ms": 1e3 * float(np.median(taken[:, 0])),
            "waveform_ms": 1e3 * float(np.median(taken[:, 1])),
            "ratio": float(np.median(taken[:, 1] / taken[:, 0])),
            "two_step_mb": encoders[0].path.stat().st_size / 1e6,
            "waveform_mb": encoders[1].path.stat().st_size / 1e6,
            "cosine_distance": 1.0 - float(embeddings[0] @ embeddings[1]),
        }


def report(
    rows: Sequence[dict[str, Any]], layer_losses: dict[str, tuple[float, float]], waveform: dict[str, float], about: str
) -> str:
    """The two tables as Markdown."""
    corpora = list(rows[0].get("eer", {}))
    lines = ["# Quantisation: what was measured", "", about, "", "## Schemes", ""]
    lines.append(
        "| scheme | cosine mean | least | " + " | ".join(f"EER {c} %" for c in corpora) + " | MB | ms | x float |"
    )
    lines.append("|" + "---|" * (6 + len(corpora)))
    for row in rows:
        eers = [f"{row['eer'][c]:.2f}" if "eer" in row else "-" for c in corpora]
        lines.append(
            f"| {row['scheme']} | {row['mean']:.4f} | {row['min']:.4f} | " + " | ".join(eers)
            + f" | {row['mb']:.2f} | {row['ms']:.1f} | {row['ratio']:.2f} |"
        )  # fmt: skip
    lines += [
        "",
        "## One layer at a time",
        "",
        "Mean of 1 - cosine, in thousandths; the ten largest and the rest together.",
        "",
    ]
    lines += ["| layer | its weights in int8 | its output in 8 bits |", "|---|---|---|"]
    items = list(layer_losses.items())
    for name, (of_weights, of_output) in items[:10]:
        lines.append(f"| {name} | {1e3 * of_weights:.3f} | {1e3 * of_output:.3f} |")
    rest = np.array([losses for _, losses in items[10:]]).reshape(-1, 2).sum(axis=0)
    lines.append(f"| the other {max(0, len(items) - 10)} | {1e3 * rest[0]:.3f} | {1e3 * rest[1]:.3f} |")
    lines += ["", "## The front end in the graph (`--input waveform`)", ""]
    lines.append(
        f"`Encoder.embed` on 3 s: {waveform['two_step_ms']:.1f} ms and {waveform['two_step_mb']:.2f} MB with features "
        f"outside, {waveform['waveform_ms']:.1f} ms and {waveform['waveform_mb']:.2f} MB with them inside (ratio "
        f"{waveform['ratio']:.3f}); cosine distance {waveform['cosine_distance']:.1e}."
    )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(prog="python -m export.study", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--speech", type=Path, nargs="+", required=True, metavar="SET")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--fit-clips", type=int, default=64)
    parser.add_argument("--held-clips", type=int, default=64)
    parser.add_argument("--eer-clips", type=int, default=600)
    parser.add_argument("--layer-clips", type=int, default=6)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, spec, _ = load_checkpoint(arguments.checkpoint)
    model.eval()
    sets = arguments.speech
    fit = take_portion(sets, spec, arguments.fit_clips, held_back=False)
    held = take_portion(sets, spec, arguments.held_clips, held_back=True)
    trials = take_portion(sets, spec, arguments.eer_clips, held_back=True, altered=False, per_speaker=6)
    rows = compare_schemes(model, spec, fit, held, trials, lambda line: print(line, file=sys.stderr, flush=True))
    every = max(1, len(held.features) // arguments.layer_clips)
    losses = sensitivity(model, spec, fit, held.features[::every][: arguments.layer_clips], Progress("layers"))
    about = (
        f"`{arguments.checkpoint.parent.name}` ({spec.name}); ranges from {len(fit.features)} clips, cosine on "
        f"{len(held.features)} held-back clips (half of them altered: quiet, clipped, noisy), EER on "
        f"{len(trials.features)} clips ({', '.join(dict.fromkeys(trials.corpus))}) of speakers that the ranges did not "
        f"see. Time: one thread, 3 s, ratio to the float graph taken in turn; {_machine()}, {platform.machine()}, "
        f"ONNX Runtime {onnxruntime.__version__}."
    )
    arguments.output.write_text(report(rows, losses, waveform_cost(model, spec, fit), about), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
