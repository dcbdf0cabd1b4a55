"""``python -m train evaluate``: error rates of a model on sets of speech."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..evaluation.clips import EvaluationSet, open_set, thin_set
from ..evaluation.decisions import evaluate_decisions
from ..evaluation.embeddings import EmbeddingCache, Model, default_cache, embed_set, hear_set, open_model
from ..evaluation.enrolment import evaluate_enrolment, format_enrolment
from ..evaluation.protocols import MAX_CLIPS, PROTOCOLS, evaluate_embeddings, make_trials
from ..evaluation.report import det_points, format_table, write_report
from ..progress import Progress
from . import add_command

__all__ = ["add", "evaluate_model", "run"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to `python -m train`."""
    parser = add_command(
        commands,
        "evaluate",
        "Error rates of a model on sets of speech.",
        """A set is a folder with manifest.csv: audio files (path, speaker, gender, emotion, seconds) or one made by
`python -m train prepare`. Four protocols, by cosine: neutral, same, pairs (different emotions) and enrol
(four neutral clips against every other emotion). 95 % intervals by bootstrap over the speakers. Where the
model carries a calibration, its log-likelihood ratios are judged as the runtime makes them too.

examples:
  python -m train evaluate emoinv_edge/models/base.onnx ../shared/eval/ravdess ../shared/eval/librispeech
  python -m train evaluate runs/base/best.pt prepared/nemo --json > figures.json
  python -m train evaluate emoinv_edge/models/base.onnx ../shared/eval/ravdess --report report.html
  python -m train evaluate emoinv_edge/models/base.onnx ../shared/eval/ravdess prepared/emodb --enrolment""",
    )
    parser.add_argument("model", type=Path, help="an .onnx file, or a checkpoint of training")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET", help="a folder with manifest.csv")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON instead of the table")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write a self-contained page with figures")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap; 0 for no intervals (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one inference (1)")
    parser.add_argument("--max-clips", type=int, default=None, help="thin a larger set evenly to so many clips (6000)")
    parser.add_argument("--cache", type=Path, help="folder for embeddings (the user's cache folder)")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor write embeddings")
    parser.add_argument("--enrolment", action="store_true", help="what enrolment is worth instead: one attempt and two")
    parser.add_argument("--no-llr", action="store_true", help="leave the log-likelihood ratios out")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print the figures."""
    if arguments.enrolment and (arguments.report is not None or arguments.no_llr):
        raise ValueError("--enrolment prints tables of the calibrated decisions; leave --report and --no-llr out")
    if arguments.resamples < 0:
        raise ValueError(f"expected --resamples of 0 or more, got {arguments.resamples}")
    results = evaluate_model(
        arguments.model,
        arguments.sets,
        resamples=arguments.resamples,
        seed=arguments.seed,
        num_threads=arguments.threads,
        max_clips=arguments.max_clips,
        cache_folder=arguments.cache,
        use_cache=not arguments.no_cache,
        llr=not arguments.no_llr,
        enrolment=arguments.enrolment,
        progress=lambda name: Progress(f"embed {name}"),
    )
    if results is None:  # another rank prints
        return 0
    if arguments.enrolment:
        tables = {name: found["enrolment"] for name, found in results["sets"].items()}
        print(json.dumps(results, indent=1, sort_keys=True) if arguments.json else format_enrolment(tables))
        return 0
    if arguments.report is not None:
        write_report(arguments.report, results)
        print(f"wrote {arguments.report}", file=sys.stderr)
    print(json.dumps(results, indent=1, sort_keys=True) if arguments.json else format_table(results["sets"]))
    return 0


def _open(path: Path, num_threads: int) -> Model:
    """A model file, or a checkpoint, which alone needs torch."""
    if not path.is_file():
        raise ValueError(f"{path}: no such model; give an .onnx file or a checkpoint of training")
    if path.suffix == ".onnx":
        return open_model(path, num_threads)
    import torch

    from emoinv_edge.features import log_mel, mean_normalise

    from ..model import load_checkpoint

    torch.set_num_threads(num_threads)
    network, spec, _ = load_checkpoint(path)
    network.eval()

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        features = log_mel(waveform, spec)
        if spec.mean_normalisation:
            features = mean_normalise(features)
        with torch.inference_mode():
            embedding: NDArray[np.float32] = network(torch.from_numpy(features[None])).numpy()[0]
            return embedding

    return Model(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), spec.embedding_dim, embed)


def evaluate_model(
    path: Path,
    folders: Sequence[Path],
    resamples: int = 1000,
    seed: int = 0,
    num_threads: int = 1,
    max_clips: int | None = None,
    cache_folder: Path | None = None,
    use_cache: bool = True,
    llr: bool = True,
    enrolment: bool = False,
    progress: Callable[[str], Callable[[int, int], None]] = lambda name: lambda done, total: None,
) -> dict[str, Any] | None:
    """Everything that the command prints: the model, and the figures of each set, or those of enrolment alone.

    Under ``torchrun`` each rank embeds its share of the clips into the cache; rank 0 goes on, the others return None.

    Raises
    ------
    ValueError
        If the model or a set cannot be opened, two sets have one name, or several processes are without a cache.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not use_cache:
        raise ValueError("several processes share their embeddings through the cache; leave --no-cache out")
    whole = [open_set(folder) for folder in folders]
    names = [evaluation.name for evaluation in whole]
    if len(set(names)) < len(names):
        raise ValueError(f"expected sets of different folder names, got {names}; rename one or give it once")
    sets = [thin_set(evaluation, max_clips or MAX_CLIPS) for evaluation in whole]
    model = _open(path, num_threads)
    folder = cache_folder if cache_folder is not None else default_cache()
    if world > 1:
        with EmbeddingCache(folder, model.fingerprint, model.embedding_dim, rank) as cache:
            for evaluation in sets:
                share = range(rank, len(evaluation.clips), world)
                embed_set(model, evaluation, cache, progress(f"{evaluation.name}, rank {rank}"), share)
        from ..distributed import barrier

        barrier()
        if rank != 0:
            return None
    results: dict[str, Any] = {"model": model.name, "fingerprint": model.fingerprint, "sets": {}}
    with contextlib.ExitStack() as stack:
        known = None
        if use_cache:
            known = stack.enter_context(EmbeddingCache(folder, model.fingerprint, model.embedding_dim, rank))
        for evaluation, everything in zip(sets, whole, strict=True):
            if enrolment:
                found = _enrolment(model, evaluation, known, resamples, seed, progress)
                results["sets"][evaluation.name] = {"enrolment": found, "clips": len(everything.clips)}
                continue
            figures = _evaluate(model, evaluation, known, resamples, seed, llr, progress)
            results["sets"][evaluation.name] = figures | {"clips": len(everything.clips)}
    return results


def _evaluate(
    model: Model,
    evaluation: EvaluationSet,
    cache: EmbeddingCache | None,
    resamples: int,
    seed: int,
    llr: bool,
    progress: Callable[[str], Callable[[int, int], None]],
) -> dict[str, Any]:
    """The figures of one set by cosine, its DET curves, and its decisions where the model is calibrated."""
    clips = evaluation.clips
    embeddings = embed_set(model, evaluation, cache, progress(evaluation.name))
    out = evaluate_embeddings(embeddings, clips, resamples=resamples, seed=seed, max_clips=len(clips))
    out["det"] = {}
    for protocol in PROTOCOLS:
        if protocol in out:
            trials = make_trials(clips, protocol)
            out["det"][protocol] = det_points(trials.scores(embeddings), trials.target)
    calibration = None if model.encoder is None else model.encoder.calibration
    if llr and calibration is not None:
        heard = hear_set(model, evaluation, cache, progress(f"{evaluation.name}, speech alone"))
        decisions = evaluate_decisions(heard, clips, calibration, resamples, seed)
        if decisions is not None:
            out["llr"] = decisions
    return out


def _enrolment(
    model: Model,
    evaluation: EvaluationSet,
    cache: EmbeddingCache | None,
    resamples: int,
    seed: int,
    progress: Callable[[str], Callable[[int, int], None]],
) -> dict[str, Any]:
    """What enrolment is worth on one set, as the runtime decides."""
    calibration = None if model.encoder is None else model.encoder.calibration
    if calibration is None:
        raise ValueError(f"{model.name}: expected a model file with a calibration; without it nothing is decided")
    heard = hear_set(model, evaluation, cache, progress(f"{evaluation.name}, speech alone"))
    found = evaluate_enrolment(heard, evaluation.clips, calibration, resamples, seed)
    if found is None:
        raise ValueError(
            f"{evaluation.name}: expected two speakers or more with four neutral clips, the other emotions that are "
            "enrolled, and some that are not"
        )
    return found
