"""The guards of a model file: windows added to its graph, and the tests fitted on what it hears."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from emoinv_edge.encoder import Encoder
from train.calibration.guard_speech import Heard, join_clips, measure_clips, measure_sounds, read_heard, write_heard
from train.calibration.guards import fit_guards
from train.prepare import PreparedSet

from . import gates
from .chain import KEYS, made_now, write_model, written
from .gates import GateFailed
from .windows import add_windows, geometry

__all__ = ["add_guards"]

Report = Callable[[str], None]


def add_guards(
    model: Path,
    out: Path,
    speech: Sequence[Path],
    sounds: Sequence[Path],
    cache: Path | None = None,
    report: Report = print,
) -> Mapping[str, Mapping[str, float]]:
    """Fit the guards of an exported file; embeddings, calibration and golden test stay as they are.

    The graph gets the output ``windows`` where it has none yet, and with it a new fingerprint. Later fits keep that.

    Parameters
    ----------
    model : Path
        From `export_model`, with a calibration.
    out : Path
        The model file to write; may be `model`.
    speech : sequence of Path
        Prepared sets of two corpora or more that the encoder was not trained on.
    sounds : sequence of Path
        Folders of recorded sounds that are nobody's speech.
    cache : Path, optional
        Folder in which what the model heard is kept: it saves the time where only the calibration is new.
    report : callable
        Takes one line a step.

    Returns
    -------
    mapping
        What the guards find and mistake on corpora left out: name of a figure -> corpus or kind -> share.

    Raises
    ------
    ModelFormatError
        If `model` is damaged or no model of this project.
    ValueError
        If it has no calibration, or the sets cannot teach anything.
    GateFailed
        If this processor does not compute the embeddings of the golden test, or the file outgrows its tier.
    """
    original = Encoder(model)
    if original.calibration is None:
        raise ValueError(
            f"{model}: expected a file with a calibration; calibrate it first (python -m export calibrate)"
        )
    graph = onnx.load_from_string(model.read_bytes())
    values: dict[str, Any] = {entry.key: entry.value for entry in graph.metadata_props if entry.key in KEYS}
    missing = set(KEYS) - values.keys() - {"emoinv.guards", "emoinv.cohort"}
    if missing:
        raise ValueError(f"{model}: expected a file of `python -m export`, but it lacks {', '.join(sorted(missing))}")
    frame_s = original.spec.frame_shift_ms / 1000.0
    _, window, hop = geometry(graph)
    graph = add_windows(graph)
    values.pop("emoinv.guards", None)
    provenance = json.loads(values["emoinv.provenance"])
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder) / out.name
        write_model(draft, graph, values)
        encoder = Encoder(draft)
        golden = gates.golden(encoder)
        if not golden.passed:
            raise GateFailed(golden)
        heard = _heard(encoder, speech, sounds, cache, report)
        report(f"step  guards fitted on {len(heard)} recordings")
        fitted = fit_guards(heard, original.calibration, window * frame_s, hop * frame_s)
        values["emoinv.guards"] = fitted.guards.to_json()
        provenance |= {"guards_figures": fitted.figures, **made_now()}
        values["emoinv.provenance"] = provenance
        write_model(draft, graph, values)
        size = gates.file_size(encoder.spec.name, draft.stat().st_size)
        if not size.passed:
            raise GateFailed(size)
        final = Encoder(draft)
        os.replace(draft, out)
    report(written(out, final))
    return fitted.figures


def _heard(
    encoder: Encoder, speech: Sequence[Path], sounds: Sequence[Path], cache: Path | None, report: Report
) -> list[Heard]:
    """What the encoder hears of the speech and the sounds; from the cache where it holds it."""
    kept = None if cache is None else cache / f"{encoder.spec.name}-{encoder.fingerprint[:16]}.npz"
    if kept is not None and kept.is_file():
        report(f"step  from {kept}")
        return read_heard(kept)
    sets = [PreparedSet(path) for path in speech]

    def progress(what: str) -> None:
        report(f"step  {what}")

    heard = list(measure_clips(encoder, sets, progress))
    heard += measure_sounds(encoder, sounds, progress)
    heard += join_clips(encoder, sets, heard, progress)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_heard(kept, heard)
    return heard
