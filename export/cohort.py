"""Write the strangers into a model file on whom every new profile is tried (`emoinv_edge.cohort`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from emoinv_edge.cohort import Cohort
from emoinv_edge.encoder import Encoder
from emoinv_edge.utterance import hear
from train.prepare import PreparedSet

from .chain import KEYS, rewrite, written

__all__ = ["SPEAKERS", "add_cohort", "gather"]

SPEAKERS = 100
CLIPS = 3  # of one speaker
SHORTEST_S = 2.0


def gather(encoder: Encoder, sets: Sequence[Path], source: str, speakers: int = SPEAKERS) -> Cohort:
    """The mean embeddings of so many speakers of prepared sets, the longest clips of each.

    Raises
    ------
    ValueError
        If the sets have fewer speakers with usable speech.
    """
    found: list[tuple[Any, float, float]] = []
    norms: list[float] = []
    for folder in sets:
        prepared = PreparedSet(folder)
        by_speaker: dict[str, list[int]] = {}
        for place, clip in enumerate(prepared.clips):
            if clip.speaker and clip.seconds >= SHORTEST_S:
                by_speaker.setdefault(clip.speaker, []).append(place)
        for speaker in sorted(by_speaker):
            places = sorted(by_speaker[speaker], key=lambda place: -prepared.clips[place].samples)[:CLIPS]
            heard = [hear(encoder, prepared.waveform(place), encoder.spec.sample_rate) for place in places]
            usable = [(each.embedding, each.quality) for each in heard if each.embedding is not None and each.quality]
            pitch = [quality.log_f0_mean for _, quality in usable if quality.log_f0_mean is not None]
            if not usable or not pitch or len(found) == speakers:
                continue
            mean = np.mean([embedding.vector for embedding, _ in usable], axis=0)
            own = [float(np.log(embedding.norm)) for embedding, _ in usable]
            norms += own
            found.append((mean / np.linalg.norm(mean), float(np.mean(pitch)), float(np.mean(own))))
    if len(found) < speakers:
        raise ValueError(f"expected {speakers} speakers with speech of {SHORTEST_S:g} s, got {len(found)}; give more")
    vectors, f0, log_norms = zip(*found, strict=True)
    return Cohort(np.asarray(vectors, np.float32), f0, log_norms, max(norms), source)


def add_cohort(
    model: Path,
    out: Path,
    sets: Sequence[Path],
    source: str,
    speakers: int = SPEAKERS,
    report: Callable[[str], None] = print,
) -> None:
    """Write `model` with a cohort of these sets; graph, spec, calibration and golden test stay as they are.

    Parameters
    ----------
    model, out : Path
        Model files; may be the same.
    sets : sequence of Path
        Prepared sets of people whose licence allows it.
    source : str
        The file's note on where they come from, with the licence.
    speakers : int
    report : callable
        Takes one line a step.

    Raises
    ------
    ValueError
        If the sets have too few speakers.
    GateFailed
        If the file outgrows its tier.
    """
    encoder = Encoder(model)
    graph = onnx.load_from_string(model.read_bytes())
    values: dict[str, Any] = {entry.key: entry.value for entry in graph.metadata_props if entry.key in KEYS}
    report(f"step  a cohort of {speakers} speakers of {', '.join(path.name for path in sets)}")
    values["emoinv.cohort"] = json.dumps(gather(encoder, sets, source, speakers).to_values())
    report(written(out, rewrite(encoder, graph, values, out)))
