"""``python -m export browser``: a folder with what a page or another language needs of a model.

The graph of the model file gets the front end put before it; its weights, and so its embeddings up to rounding, stay
what they are. In another language profiles are bound to the fingerprint of the model file that the flavour was made of,
so that profiles of the one are profiles of the other.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import emoinv_edge
from emoinv_edge.audio import read_audio
from emoinv_edge.calibration import Calibration
from emoinv_edge.encoder import Encoder
from emoinv_edge.files import write_atomically
from emoinv_edge.golden import make_golden
from emoinv_edge.machine import processor

from . import gates
from .chain import KEYS, Calibrating, golden_inputs, made_now, write_model
from .frontend import add_frontend
from .gates import GateFailed
from .portable import calibration_of_values, calibration_values, dump, scores_of, vectors

__all__ = ["export_browser", "kept_scores", "write_scores"]

FOLDER = Path(__file__).parent / "portable_scores"
SCHEMAS = ("calibration.schema.json", "profile.schema.json")
MODEL = "model.onnx"
LEAST_COSINE = 0.995  # of the two flavours' embeddings, as for the golden test
Report = Callable[[str], None]


def kept_scores(encoder: Encoder) -> Calibration:
    """The calibration without pitch that this checkout keeps for a model.

    Raises
    ------
    ValueError
        If there is none for it.
    """
    for path in sorted(set(FOLDER.glob("*.json")) - {FOLDER / name for name in SCHEMAS}):
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("fingerprint") == encoder.fingerprint:
            return calibration_of_values(values)
    raise ValueError(
        f"{encoder.path}: no calibration without pitch is kept for the model {encoder.fingerprint[:12]}; fit one: "
        "python -m export browser MODEL -o DIR --calibrate SET... --emotion-axis CORPUS..."
    )


def write_scores(path: Path, encoder: Encoder, calibration: Calibration) -> None:
    """Keep a calibration without pitch for a model, as `kept_scores` finds it in ``export/portable_scores``."""
    values = {"fingerprint": encoder.fingerprint, **scores_of(calibration)}
    write_atomically(path, dump(values).encode(), mode=0o644)


def export_browser(
    source: Encoder, folder: Path, calibrating: Calibrating | None = None, report: Report = print
) -> Encoder:
    """Write the waveform flavour, its calibration without pitch, test vectors and schemas into a folder.

    Parameters
    ----------
    source : Encoder
        Of the features flavour: a shipped model, or a file of ``python -m export make``.
    folder : Path
        Made where it is missing; what is there of these files is replaced.
    calibrating : Calibrating, optional
        Fit the scores anew; otherwise `kept_scores`.
    report : callable
        Takes one line a step.

    Returns
    -------
    Encoder
        The model that was written.

    Raises
    ------
    ValueError
        If the source takes waveforms already, or no calibration is at hand.
    GateFailed
        If the two flavours' embeddings differ.
    """
    if source.input != "features":
        raise ValueError(f"{source.path}: expected a model that takes features, got one that takes {source.input}")
    calibration = kept_scores(source) if calibrating is None else calibrating.calibration(source)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        draft = Path(name)
        encoder = _write_waveform_model(source, draft / MODEL, calibration)
        report(f"step  {_compare(source, encoder)}")
        _write_vectors(encoder, source.fingerprint, draft)
        (draft / "calibration.json").write_text(dump(calibration_values(encoder, source.fingerprint)), encoding="utf-8")
        for schema in SCHEMAS:
            shutil.copy(FOLDER / schema, draft / schema)
        if calibrating is not None:
            write_scores(draft / "scores.json", source, calibration)
        vectors_folder = folder / "vectors"
        if vectors_folder.exists():
            shutil.rmtree(vectors_folder)
        for path in sorted(draft.iterdir()):
            path.replace(folder / path.name)
    written = Encoder(folder / MODEL)
    report(f"wrote {folder}: {MODEL} of {(folder / MODEL).stat().st_size / gates.MEGABYTE:.2f} MB and its calibration")
    return written


def _write_waveform_model(source: Encoder, path: Path, calibration: Calibration) -> Encoder:
    """The source's graph with the front end before it, and its metadata."""
    graph = onnx.load_from_string(source.path.read_bytes())
    held = {entry.key: entry.value for entry in graph.metadata_props if entry.key in KEYS}
    del graph.metadata_props[:]
    graph = add_frontend(graph, source.spec)
    provenance = json.loads(held.get("emoinv.provenance", "{}"))
    values: dict[str, Any] = {"emoinv.spec": source.spec.to_json(), "emoinv.calibration": calibration.to_json()}
    write_model(path, graph, values)
    inputs = golden_inputs(source.spec)
    values["emoinv.golden"] = make_golden(Encoder(path), inputs, processor()[0])
    values["emoinv.provenance"] = provenance | {
        "sealed": True,
        "flavour": "waveform",
        "parents": provenance.get("parents", {}) | {"features_flavour": source.file_sha256},
        **made_now(),
    }
    write_model(path, graph, values)
    return Encoder(path)


def _compare(source: Encoder, encoder: Encoder) -> str:
    cosines = [
        float(source.embed(waveform, source.spec.sample_rate) @ encoder.embed(waveform, source.spec.sample_rate))
        for waveform in golden_inputs(source.spec)
    ]
    least = min(cosines)
    gate = gates.Gate("flavours agree", least >= LEAST_COSINE, f"least cosine {least:.6f}", {"least": least})
    if not gate.passed:
        raise GateFailed(gate)
    return gate.line()


def _write_vectors(encoder: Encoder, fingerprint: str, folder: Path) -> None:
    """Recordings and expected values from the bundled synthetic voices."""
    clips = Path(emoinv_edge.__file__).parent / "demo" / "clips"
    rate = encoder.spec.sample_rate

    def clip(name: str) -> NDArray[np.int16]:
        waveform, _ = read_audio(clips / f"{name}.ogg", rate)
        return np.clip(np.rint(waveform * 32768.0), -32768, 32767).astype(np.int16)

    loud = clip("awb/excited-1").astype(np.int32) * 40
    rng = np.random.default_rng(0)
    parts = [clip("awb/neutral-4")[:40000], clip("awb/subdued-1")[:24000], clip("awb/tense-1")]
    pauses = [np.zeros(round(seconds * rate), np.int16) for seconds in (1.0, 1.3, 0.2, 0.9)]
    spaced = np.concatenate([part for pair in zip(pauses, [*parts, parts[0][:0]], strict=True) for part in pair])
    noisy = np.rint(spaced + rng.normal(0.0, 60.0, len(spaced))).clip(-32768, 32767).astype(np.int16)
    tests = {
        "owner": clip("awb/excited-1"),
        "owner-tired": clip("awb/tired-1"),
        "owner-pauses": noisy,
        "other": clip("rms/excited-1"),
        "short": clip("awb/neutral-1")[: rate * 6 // 10],
        "clipped": np.clip(loud, -32768, 32767).astype(np.int16),
        "silent": np.zeros(2 * rate, np.int16),
    }
    (folder / "vectors").mkdir()
    enrol = [clip(f"awb/neutral-{n}") for n in range(1, 5)]
    found = vectors(encoder, fingerprint, enrol, tests, folder / "vectors")
    (folder / "vectors" / "vectors.json").write_text(dump(found), encoding="utf-8")
