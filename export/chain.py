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
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from emoinv_edge.model_file import seal
from emoinv_edge.spec import EncoderSpec
from train.audit import correct_labels, read_corrections
from train.calibration.channels import CHANNELS
from train.calibration.fit import fit_calibration
from train.calibration.speech import noises_of
from train.calibration.thresholds import SAFETY
from train.calibration.weights import term_names
from train.model import ResidualEncoder, SpeakerNet, load_checkpoint
from train.prepare import PreparedSet

from . import gates
from .frontend import add_frontend
from .gates import Gate, GateFailed
from .graph import encoder_graph
from .quantise import Observed, Scheme, choose_ranges, correct_weights, equalise, even_out, observe, round_weights
from .speech import Portion, take_portion

__all__ = [
    "KEYS",
    "Calibrating",
    "Options",
    "export_model",
    "golden_inputs",
    "made_now",
    "quantise",
    "recalibrate",
    "write_model",
    "written",
]

PROVENANCE_FORMAT = 1
GOLDEN_SECONDS = 0.6
# Metadata in this order: a file cut anywhere behind the spec still holds the mark that a digest should end it.
KEYS = ("emoinv.provenance", "emoinv.golden", "emoinv.cohort", "emoinv.guards", "emoinv.calibration", "emoinv.spec")


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
    model: SpeakerNet,
    spec: EncoderSpec,
    fit: Portion,
    scheme: Scheme,
    correct_clips: int = 24,
    progress: Progress = _silent,
    observed: Mapping[str, Observed] | None = None,
) -> onnx.ModelProto:
    """Int8 graph of `model`, fitted on `fit`; `observed` saves a run over it where it is at hand."""
    if isinstance(model, ResidualEncoder):
        return _quantise_residual(model, spec, fit, scheme, correct_clips, progress, observed)
    if scheme != Scheme():
        raise ValueError(f"expected a residual encoder for {scheme.describe()}, got {type(model).__name__}")
    model = even_out(model, spec, fit.features[::2])
    activations = choose_ranges(observe(model, spec, fit.features, progress("ranges")))
    return encoder_graph(model, spec, activations, round_weights(model))


def _quantise_residual(
    model: ResidualEncoder,
    spec: EncoderSpec,
    fit: Portion,
    scheme: Scheme,
    correct_clips: int,
    progress: Progress,
    observed: Mapping[str, Observed] | None,
) -> onnx.ModelProto:
    if scheme.equalisation:
        model = equalise(model, spec, fit.features[::2], scheme.equalisation, progress("equalisation"))
        observed = None
    if observed is None:
        observed = observe(model, spec, fit.features, progress("ranges"))
    activations = choose_ranges(observed)
    if scheme.correction == "bias":
        every = max(1, len(fit.features) // correct_clips)
        some = fit.features[::every][:correct_clips]
        weights = correct_weights(model, some, activations, progress("weights"))
    else:
        weights = round_weights(model)
    return encoder_graph(model, spec, activations, weights)


def golden_inputs(spec: EncoderSpec) -> list[NDArray[np.float32]]:
    """Inputs of the golden test: `GOLDEN_SECONDS` of one clip of each of three bundled synthetic voices."""
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
    """Write a graph with its metadata, sealed; atomically."""
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
    write_atomically(path, seal(model.SerializeToString()), mode=0o644)


@dataclasses.dataclass(frozen=True, slots=True)
class Calibrating:
    """What the calibration of scores is fitted on.

    Parameters
    ----------
    sets : sequence of Path
        Prepared sets of two corpora or more that the encoder was not trained on.
    terms : sequence of str, optional
        What the score weighs beside the cosine, of `train.calibration.weights.GROUPS`; chosen by the Cllr of corpora
        left out unless given.
    noise : sequence of Path
        Folders of recorded noise, which half of the tests are heard in, beside pink noise.
    axis_corpora : sequence of str
        Corpora among the sets that give the emotion axis; none leaves it out.
    channels : bool
        Whether a few clips of each speaker are heard through telephones, codecs and rooms too.
    labels : Path, optional
        Corrections of the sets' labels, from `python -m train audit`.
    safety : float
        How many times more strictly than the pooled impostors ask the thresholds are.
    """

    sets: Sequence[Path]
    terms: Sequence[str] | None = None
    noise: Sequence[Path] = ()
    axis_corpora: Sequence[str] = ()
    channels: bool = False
    labels: Path | None = None
    safety: float = SAFETY

    def calibration(self, encoder: Encoder) -> Calibration:
        """The calibration of `encoder`."""
        names = None if self.terms is None else term_names(self.terms)
        noises = noises_of(self.noise, encoder.spec.sample_rate)
        sets = [PreparedSet(path) for path in self.sets]
        if self.labels is not None:
            correct_labels(sets, read_corrections(self.labels))
        return fit_calibration(
            encoder,
            sets,
            names=names,
            noises=noises,
            axis_corpora=self.axis_corpora,
            channels=self.channels,
            safety=self.safety,
        )

    def provenance(self) -> dict[str, Any]:
        """What the file's provenance keeps of it."""
        return {
            "calibration_terms": "chosen by the Cllr of unseen corpora" if self.terms is None else "named by the user",
            "calibration_noise": ["pink", *(folder.name for folder in self.noise)],
            "calibration_axis": list(self.axis_corpora),
            "calibration_safety": self.safety,
            "calibration_channels": list(CHANNELS) if self.channels else [],
            "calibration_labels": "" if self.labels is None else hashlib.sha256(self.labels.read_bytes()).hexdigest(),
        }


def export_model(
    checkpoint: Path,
    out: Path,
    speech: Sequence[Path],
    options: Options | None = None,
    calibrating: Calibrating | None = None,
    name: str | None = None,
    report: Report = print,
    progress: Progress = _silent,
) -> list[Gate]:
    """Run the chain and write `out`.

    Parameters
    ----------
    checkpoint, out : Path
        From `train.model.save_checkpoint`, and the model file to write.
    speech : sequence of Path
        Prepared sets: half of their speakers to fit ranges and weights on, half for the gates.
    options : Options
    calibrating : Calibrating, optional
        None writes a model without calibration.
    name : str, optional
        The tier, instead of the checkpoint's own name.
    report, progress : callable
        Take one line a gate or step; make a ``(done, total)`` callable for a named step.

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
    report(f"step  int8: {options.scheme.describe()}, fitted on {len(fit.features)} clips of {len(speech)} sets")
    graph = quantise(model, spec, fit, options.scheme, options.correct_clips, progress)
    for gate in _compare(exact_graph, graph, spec, speech, options, progress):
        check(gate)
    if options.flavour == "waveform":
        graph = add_frontend(graph, spec)
    parents = {"checkpoint": checkpoint.read_bytes(), "float_graph": exact_graph.SerializeToString()}
    provenance = _provenance(extra, parents, options, fit)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder) / out.name
        values: dict[str, Any] = {"emoinv.spec": spec.to_json()}
        write_model(draft, graph, values)
        encoder = Encoder(draft)
        if calibrating is not None:
            report(f"step  calibration of scores on {', '.join(path.name for path in calibrating.sets)}")
            values["emoinv.calibration"] = calibrating.calibration(encoder).to_json()
            provenance |= calibrating.provenance()
        values["emoinv.golden"] = make_golden(encoder, golden_inputs(spec), processor()[0])
        check(gates.file_size(spec.name, draft.stat().st_size + len(json.dumps(values))))
        values["emoinv.provenance"] = provenance | {
            "gates": {gate.name: {"passed": gate.passed, **gate.figures} for gate in passed}
        }
        write_model(draft, graph, values)
        final = Encoder(draft)
        check(gates.golden(final))
        os.replace(draft, out)
    report(written(out, final))
    return passed


def _provenance(
    extra: Mapping[str, Any], parents: Mapping[str, bytes], options: Options, fit: Portion
) -> dict[str, Any]:
    """Where a file comes from: the training's own record, the hashes of what it was made of, and how."""
    trained = extra.get("provenance") or {}
    return {
        "format": PROVENANCE_FORMAT,
        "sealed": True,  # the file ends with its digest, and is refused without
        "corpora": trained.get("corpora", []),
        "training": {key: value for key, value in trained.items() if key != "corpora"} | {"step": extra.get("step")},
        "parents": {name: hashlib.sha256(content).hexdigest() for name, content in parents.items()},
        "scheme": dataclasses.asdict(options.scheme),
        "flavour": options.flavour,
        "fitted_on": sorted(set(fit.corpus)),
        "machine": processor()[0],
        **made_now(),
    }


def _compare(
    exact_graph: onnx.ModelProto,
    graph: onnx.ModelProto,
    spec: EncoderSpec,
    speech: Sequence[Path],
    options: Options,
    progress: Progress,
) -> Iterator[Gate]:
    """The gates that hold the int8 graph to the float one, on speakers that it was not fitted on."""

    def embed(portion: Portion, what: str) -> list[NDArray[np.float32]]:
        both = ((exact_graph, "float"), (graph, "int8"))
        return [gates.embed_portion(each, portion, progress(f"{what} clips, {label}")) for each, label in both]

    held = take_portion(speech, spec, options.held_clips, held_back=True)
    yield gates.compare_embeddings(*embed(held, "held-back"))
    if options.eer_clips:
        trials = take_portion(speech, spec, options.eer_clips, held_back=True, altered=False, per_speaker=6)
        yield gates.compare_eer(trials, *embed(trials, "development"))
    yield gates.compare_speed(exact_graph, graph, held.features, options.speed_rounds)


def recalibrate(model: Path, out: Path, calibrating: Calibrating, report: Report = print) -> None:
    """Fit the calibration of scores of an exported file anew; graph, spec, golden test and gates stay as they are.

    The embeddings are the same, and so the new file keeps the old one's fingerprint and profiles stay good. What
    `emoinv calibrate` refined for a device is bound to the old scores and no longer holds.

    Parameters
    ----------
    model : Path
        From `export_model`.
    out : Path
        The model file to write; may be `model`.
    calibrating : Calibrating
    report : callable
        Takes one line a step.

    Raises
    ------
    ModelFormatError
        If `model` is damaged or no model of this project.
    ValueError
        If it was not made by `export_model`, or the sets cannot calibrate anything.
    GateFailed
        If this processor does not compute the embeddings of the golden test, or the file outgrows its tier.
    """
    encoder = Encoder(model)
    graph = onnx.load_from_string(model.read_bytes())
    values: dict[str, Any] = {entry.key: entry.value for entry in graph.metadata_props if entry.key in KEYS}
    missing = set(KEYS) - values.keys() - {"emoinv.calibration", "emoinv.cohort", "emoinv.guards"}
    if missing:
        raise ValueError(f"{model}: expected a file of `python -m export`, but it lacks {', '.join(sorted(missing))}")
    golden = gates.golden(encoder)
    if not golden.passed:
        raise GateFailed(golden)
    report(f"step  calibration of scores on {', '.join(path.name for path in calibrating.sets)}")
    values["emoinv.calibration"] = calibrating.calibration(encoder).to_json()
    provenance = json.loads(values["emoinv.provenance"])
    provenance["parents"] |= {"recalibrated_file": encoder.file_sha256}
    provenance |= {**made_now(), **calibrating.provenance()}
    values["emoinv.provenance"] = provenance
    report(written(out, rewrite(encoder, graph, values, out)))


def rewrite(encoder: Encoder, graph: onnx.ModelProto, values: dict[str, Any], out: Path) -> Encoder:
    """Write the file of `encoder` with other metadata; its network, and so its profiles, stay as they are.

    Parameters
    ----------
    graph : onnx.ModelProto
        As it was read from the file.
    values : dict of str to object
        As `write_model` takes them.

    Returns
    -------
    Encoder
        What was written, in one step, to `out`.

    Raises
    ------
    GateFailed
        If the file grew too large.
    ValueError
        If the network was not written as it was read.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder) / out.name
        write_model(draft, graph, values)
        size = gates.file_size(encoder.spec.name, draft.stat().st_size)
        if not size.passed:
            raise GateFailed(size)
        final = Encoder(draft)
        if final.fingerprint != encoder.fingerprint:
            raise ValueError(
                f"{encoder.path}: expected the graph to be written as it was read, fingerprint {encoder.fingerprint}, "
                f"got {final.fingerprint}; use the version of the package onnx that wrote the file"
            )
        os.replace(draft, out)
    return final


def made_now() -> dict[str, str]:
    """Version and time, for a file's provenance."""
    return {
        "version": emoinv_edge.__version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def written(out: Path, encoder: Encoder) -> str:
    """The line on a file that was written."""
    size_mb = out.stat().st_size / gates.MEGABYTE
    return f"wrote {out}: {size_mb:.2f} MB, SHA-256 {encoder.file_sha256}, fingerprint {encoder.fingerprint}"
