"""The whole chain: checkpoint -> float graph -> int8 -> metadata -> calibration of scores -> one sealed file.

Each step is a function that can be called alone; `export_model` calls them in order and stops at the
first gate that does not open.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import emoinv_edge
from emoinv_edge.audio import read_audio
from emoinv_edge.encoder import Encoder
from emoinv_edge.features import log_mel
from emoinv_edge.model_file import make_golden, run_golden, seal
from emoinv_edge.spec import EncoderSpec
from train.calibrate import fit_calibration, noises_of, term_names
from train.model import ResidualEncoder, load_checkpoint
from train.prepare import PreparedSet

from . import gates
from .frontend import add_frontend
from .gates import Gate, GateFailed
from .graph import encoder_graph
from .quantise import Observed, Scheme, choose_ranges, correct_weights, equalise, observe
from .speech import Portion, take_portion

__all__ = ["Options", "export_model", "golden_inputs", "quantise", "recalibrate", "write_model"]

PROVENANCE_FORMAT = 1
GOLDEN_SECONDS = 1.2
# Metadata in this order: a file cut anywhere behind the spec still says that it should end with a digest.
KEYS = ("emoinv.provenance", "emoinv.golden", "emoinv.calibration", "emoinv.spec")


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """What an export does, besides the checkpoint.

    Parameters
    ----------
    scheme : Scheme
    flavour : {"features", "waveform"}
    fit_clips, correct_clips, held_clips, eer_clips : int
        Clips that ranges are found on, that weights are corrected on (some of the former), that the
        cosine is measured on, and that the EER is measured on.
    speed_rounds : int
        Timed runs of each graph.
    require : bool
        Whether a gate that does not open stops the export.
    """

    scheme: Scheme = dataclasses.field(default_factory=Scheme)
    flavour: str = "features"
    fit_clips: int = 160
    correct_clips: int = 24
    held_clips: int = 64
    eer_clips: int = 1500  # 600 do not resolve the 0.2 points of the gate
    speed_rounds: int = 31
    require: bool = True


Report = Callable[[str], None]
Progress = Callable[[str], Callable[[int, int], None]]


def _silent(what: str) -> Callable[[int, int], None]:
    return lambda done, total: None


def quantise(
    model: ResidualEncoder,
    spec: EncoderSpec,
    fit: Portion,
    scheme: Scheme,
    correct_clips: int = 24,
    progress: Progress = _silent,
    observed: Mapping[str, Observed] | None = None,
) -> onnx.ModelProto:
    """Int8 graph of `model`, fitted on `fit`; `observed` saves a run over it where it is at hand."""
    if scheme.equalisation:
        model = equalise(model, spec, fit.features[::2], scheme.equalisation, progress("equalisation"))
        observed = None
    if observed is None:
        observed = observe(model, spec, fit.features, progress("ranges"))
    activations = {
        name: affine for name, affine in choose_ranges(observed, scheme).items() if name not in scheme.kept_float
    }
    every = max(1, len(fit.features) // correct_clips)
    some = fit.features[::every][:correct_clips]
    weights = correct_weights(model, some, activations, scheme, progress("weights"))
    return encoder_graph(model, spec, activations, weights)


def golden_inputs(spec: EncoderSpec) -> list[NDArray[np.float32]]:
    """Waveforms of the golden test: the bundled synthetic voices, `GOLDEN_SECONDS` of one clip each."""
    clips = Path(emoinv_edge.__file__).parent / "demo" / "clips"
    out = []
    for voice in sorted(path for path in clips.iterdir() if path.is_dir())[:3]:
        first = min(path for path in voice.rglob("*") if path.is_file())
        waveform, _ = read_audio(first, spec.sample_rate)
        out.append(waveform[: round(GOLDEN_SECONDS * spec.sample_rate)])
    if not out:
        raise FileNotFoundError(f"expected the demonstration clips in {clips}, found none; use a whole checkout")
    return out


def write_model(path: Path, graph: onnx.ModelProto, values: dict[str, Any]) -> None:
    """Write a graph with its metadata, sealed, whole or not at all."""
    unknown = values.keys() - set(KEYS)
    if unknown:
        raise ValueError(f"expected metadata keys of {KEYS}, got {sorted(unknown)}")
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.metadata_props[:]
    for key in KEYS:
        if key in values:
            text = values[key] if isinstance(values[key], str) else json.dumps(values[key], sort_keys=True)
            model.metadata_props.add(key=key, value=text)
    part = path.with_name(path.name + ".part")
    part.write_bytes(seal(model.SerializeToString()))
    os.replace(part, path)


def export_model(
    checkpoint: Path,
    out: Path,
    speech: Sequence[Path],
    options: Options | None = None,
    calibration_sets: Sequence[Path] = (),
    name: str | None = None,
    report: Report = print,
    progress: Progress = _silent,
    terms: Sequence[str] | None = None,
    noise_folders: Sequence[Path] = (),
    moods: Sequence[str] = (),
) -> list[Gate]:
    """Run the chain and write `out`.

    Parameters
    ----------
    checkpoint : Path
        From `train.model.save_checkpoint`.
    out : Path
        The model file to write.
    speech : sequence of Path
        Prepared sets: half of their speakers to fit ranges and weights on, half for the gates.
    options : Options
    calibration_sets : sequence of Path
        Prepared sets that the calibration of scores is fitted on (two corpora or more that the encoder was
        not trained on); none writes a model without calibration.
    name : str, optional
        The tier, instead of the checkpoint's own name.
    report, progress : callable
        Take one line a gate or step; make a ``(done, total)`` callable for a named step.
    terms : sequence of str, optional
        What the score weighs beside the cosine, of `train.calibrate.GROUPS`; chosen by the Cllr of unseen
        corpora unless given.
    noise_folders : sequence of Path
        Recordings of noise that the tests of the calibration are heard in, half of them, beside pink noise.
    moods : sequence of str
        Corpora among the calibration sets that tell in which directions moods move embeddings
        (`train.calibrate.learn_moods`); none leaves moods aside.

    Returns
    -------
    list of Gate

    Raises
    ------
    GateFailed
        If a gate does not open and ``options.require``; nothing is written then.
    """
    options = options or Options()
    passed: list[Gate] = []

    def check(gate: Gate) -> None:
        report(gate.line())
        passed.append(gate)
        if options.require and not gate.passed:
            raise GateFailed(gate)

    model, spec, extra = load_checkpoint(checkpoint)
    model.eval()
    if name is not None:
        spec = dataclasses.replace(spec, name=name)
    exact_graph = encoder_graph(model, spec)
    check(gates.compare_with_torch(model, spec, exact_graph))

    fit = take_portion(speech, spec, options.fit_clips, held_back=False)
    held = take_portion(speech, spec, options.held_clips, held_back=True)
    scheme = options.scheme
    report(f"step  int8: {scheme.describe()}, fitted on {len(fit.features)} clips of {len(speech)} sets")
    ours_graph = quantise(model, spec, fit, scheme, options.correct_clips, progress)
    exact, ours = (
        gates.embed_portion(graph, held, progress(f"held-back clips, {label}"))
        for graph, label in ((exact_graph, "float"), (ours_graph, "int8"))
    )
    check(gates.compare_embeddings(exact, ours))
    if options.eer_clips:
        trials = take_portion(speech, spec, options.eer_clips, held_back=True, altered=False, per_speaker=6)
        exact, ours = (
            gates.embed_portion(graph, trials, progress(f"development clips, {label}"))
            for graph, label in ((exact_graph, "float"), (ours_graph, "int8"))
        )
        check(gates.compare_eer(trials, exact, ours))
    check(gates.compare_speed(exact_graph, ours_graph, held.features, options.speed_rounds))

    graph = add_frontend(ours_graph, spec) if options.flavour == "waveform" else ours_graph
    parents = {"checkpoint": _sha256(checkpoint.read_bytes()), "float_graph": _sha256(exact_graph.SerializeToString())}
    trained = extra.get("provenance") or {}
    provenance = {
        "format": PROVENANCE_FORMAT,
        "sealed": True,  # the file ends with its digest, and is refused without
        "version": emoinv_edge.__version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "corpora": trained.get("corpora", []),
        "training": {key: value for key, value in trained.items() if key != "corpora"} | {"step": extra.get("step")},
        "parents": parents,
        "scheme": dataclasses.asdict(scheme),
        "flavour": options.flavour,
        "fitted_on": sorted(set(fit.corpus)),
        "machine": _machine(),
    }
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder) / out.name
        values: dict[str, Any] = {"emoinv.spec": spec.to_json()}
        write_model(draft, graph, values)
        if calibration_sets:
            values["emoinv.calibration"] = _fit_calibration(
                Encoder(draft), calibration_sets, report, terms, noise_folders, moods
            )
            provenance |= _how_calibrated(terms, noise_folders, moods)
        encoder = Encoder(draft)
        waveforms = golden_inputs(spec)
        inputs = waveforms if options.flavour == "waveform" else [log_mel(w, spec) for w in waveforms]
        values["emoinv.golden"] = make_golden(encoder, inputs, _machine())
        size = draft.stat().st_size + len(json.dumps(values))
        check(gates.file_size(spec.name, size))
        values["emoinv.provenance"] = provenance | {
            "gates": {gate.name: {"passed": gate.passed, **gate.figures} for gate in passed}
        }
        write_model(draft, graph, values)
        final = Encoder(draft)
        check(_golden_gate(final))
        os.replace(draft, out)
    report(f"wrote {out}: {out.stat().st_size / gates.MEGABYTE:.2f} MB, fingerprint {final.fingerprint}")
    return passed


def recalibrate(
    model: Path,
    out: Path,
    calibration_sets: Sequence[Path],
    report: Report = print,
    terms: Sequence[str] | None = None,
    noise_folders: Sequence[Path] = (),
    moods: Sequence[str] = (),
) -> None:
    """Fit the calibration of scores of an exported file anew; graph, spec, golden test and gates stay as they are.

    The embeddings are the same, and so the new file keeps the old one's fingerprint and profiles stay good. What
    `emoinv calibrate` refined for a device is bound to the old scores and no longer holds.

    Parameters
    ----------
    model : Path
        From `export_model`.
    out : Path
        The model file to write; may be `model`.
    calibration_sets, terms, noise_folders, moods
        As for `export_model`.

    Raises
    ------
    ModelFormatError
        If `model` is damaged or no model of this project.
    ValueError
        If it was not made by `export_model`, or the sets cannot calibrate anything.
    GateFailed
        If this processor does not compute the voices of the golden test, or the file outgrows its tier.
    """
    encoder = Encoder(model)
    graph = onnx.load_from_string(model.read_bytes())
    values: dict[str, Any] = {entry.key: entry.value for entry in graph.metadata_props if entry.key in KEYS}
    missing = set(KEYS) - values.keys() - {"emoinv.calibration"}
    if missing:
        raise ValueError(f"{model}: expected a file of `python -m export`, but it lacks {', '.join(sorted(missing))}")
    golden = _golden_gate(encoder)
    if not golden.passed:
        raise GateFailed(golden)
    values["emoinv.calibration"] = _fit_calibration(encoder, calibration_sets, report, terms, noise_folders, moods)
    provenance = json.loads(values["emoinv.provenance"])
    provenance["parents"] = provenance["parents"] | {"recalibrated_file": encoder.file_sha256}
    provenance["fingerprint"] = encoder.fingerprint
    provenance |= _how_calibrated(terms, noise_folders, moods)
    provenance["created"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    provenance["version"] = emoinv_edge.__version__
    values["emoinv.provenance"] = provenance
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder) / out.name
        write_model(draft, graph, values)
        size = gates.file_size(encoder.spec.name, draft.stat().st_size)
        if not size.passed:
            raise GateFailed(size)
        final = Encoder(draft)
        os.replace(draft, out)
    size_mb = out.stat().st_size / gates.MEGABYTE
    report(f"wrote {out}: {size_mb:.2f} MB, sha256 {final.file_sha256}, fingerprint {final.fingerprint}")


def _fit_calibration(
    encoder: Encoder,
    sets: Sequence[Path],
    report: Report,
    terms: Sequence[str] | None,
    noise_folders: Sequence[Path],
    moods: Sequence[str],
) -> str:
    names = None if terms is None else term_names(terms)
    noises = noises_of(noise_folders, encoder.spec.sample_rate)
    report(f"step  calibration of scores on {', '.join(path.name for path in sets)}")
    prepared = [PreparedSet(path) for path in sets]
    return fit_calibration(encoder, prepared, names=names, noises=noises, moods=moods).to_json()


def _how_calibrated(
    terms: Sequence[str] | None, noise_folders: Sequence[Path], moods: Sequence[str]
) -> dict[str, Any]:
    """What the file's provenance says of its calibration."""
    return {
        "calibration_terms": "by the Cllr of unseen corpora" if terms is None else "named by whoever exported it",
        "calibration_noise": ["pink", *(folder.name for folder in noise_folders)],
        "calibration_moods": list(moods),
    }


def _golden_gate(encoder: Encoder) -> Gate:
    results = run_golden(encoder)
    worst = min(result.cosine for result in results)
    return Gate("golden test", all(r.passed for r in results), f"least cosine {worst:.6f}", {"least": worst})


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _machine() -> str:
    """The processor, as the model card names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        cpu = ""
    return cpu or platform.processor() or platform.machine()
