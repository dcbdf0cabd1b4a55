"""What many tests build: voices, encoders, calibrations, profiles; each from one function with one signature."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from emoinv_edge.calibration import Calibration, EmotionAxis, FarTable, Term
from emoinv_edge.encoder import Encoder
from emoinv_edge.enrolment import Enroller
from emoinv_edge.profiles import Exemplar, Profile
from emoinv_edge.quality import SpeechQuality
from emoinv_edge.spec import EncoderSpec

RATE = 16000
# Two voices of `synthesise` that every tiny encoder separates.
ANA_HZ, BOB_HZ = 210.0, 110.0
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
TINY_SPEC = EncoderSpec(name="tiny", embedding_dim=32)


def quality(**changes: Any) -> SpeechQuality:
    """The quality of three seconds of good speech."""
    good = SpeechQuality(3.0, 25.0, 0.0, -20.0, 4.8, 0.1, -5.0, 0.7)
    return dataclasses.replace(good, **changes)


def calibration(**changes: Any) -> Calibration:
    """A calibration that suits the tiny encoders: a cosine of 0.7 is an LLR of 0."""
    suited = Calibration(
        bias=-7.0,
        terms=(Term("cosine", 10.0, -1.0, 1.0),),
        far_tables=(FarTable(1, (0.5, 0.01), (-1.0, 0.0)), FarTable(2, (0.5, 0.01), (0.0, 0.5))),
        num_impostor_speakers=300,
        source="invented for the tests",
    )
    return dataclasses.replace(suited, **changes)


def emotion_axis(vector: NDArray[Any]) -> EmotionAxis:
    """The axis along this vector, of unit norm."""
    return EmotionAxis(np.asarray(vector, "<f4").tobytes())


def unit_vectors(count: int, seed: int, dim: int = TINY_SPEC.embedding_dim) -> NDArray[np.float32]:
    """Random embeddings, shape (count, dim), each of unit norm."""
    drawn = np.random.default_rng(seed).standard_normal((count, dim))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def profile(name: str, *embeddings: NDArray[np.float32], model: str, **changes: Any) -> Profile:
    """A profile of exemplars with these embeddings, of good speech, by the model of that fingerprint."""
    exemplars = tuple(Exemplar(embedding, quality(), NOW) for embedding in embeddings)
    return dataclasses.replace(Profile(name, model, exemplars, NOW), **changes)


def enrolled(encoder: Encoder, name: str, f0_hz: float, takes: int = 2, seconds: float = 3.0) -> Profile:
    """The profile of a voice of `synthesise`, enrolled from so many utterances."""
    enroller = Enroller(encoder)
    for take in range(takes):
        answer = enroller.add(synthesise(seconds, 1000 + take, f0_hz), RATE)
        assert answer.accepted, answer.message
    return enroller.profile(name)


def in_file(held: Calibration) -> dict[str, Any]:
    """The calibration as `build_encoder` takes it among its metadata."""
    return {"emoinv.calibration": json.loads(held.to_json())}


def calibrated_encoder(folder: Path, held: Calibration | None = None, **arguments: Any) -> Encoder:
    """A tiny encoder with `held`, or else `calibration()`, in its file; other arguments as for `build_encoder`."""
    return Encoder(build_encoder(folder / "calibrated.onnx", metadata=in_file(held or calibration()), **arguments))


def noise(seconds: float, seed: int = 0, level: float = 0.0005) -> NDArray[np.float32]:
    """White noise of this standard deviation, as there is before, between and after speech."""
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def synthesise(seconds: float, seed: int, f0_hz: float = 120.0, sample_rate: int = 16000) -> NDArray[np.float32]:
    """Voiced sound with intonation, moving formants and a syllable rhythm, which WebRTC VAD calls speech.

    Parameters
    ----------
    seconds : float
    seed : int
        What is said: vowels, rhythm and intonation.
    f0_hz : float
        The voice: mean pitch; the formants move with it, as in a shorter vocal tract.
    sample_rate : int

    Returns
    -------
    ndarray, shape (seconds * sample_rate,), float32, peak 0.5
        The caller's own, to change at will.
    """
    return _synthesise(float(seconds), seed, float(f0_hz), sample_rate).copy()


@functools.lru_cache(maxsize=512)
def _synthesise(seconds: float, seed: int, f0_hz: float, sample_rate: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    knots = np.arange(0.0, seconds + 0.4, 0.2)  # five vowels a second

    def contour(low: float, high: float) -> NDArray[np.float64]:
        return np.interp(time, knots, rng.uniform(low, high, len(knots)))

    f0 = f0_hz * contour(0.88, 1.12)
    phase = 2.0 * np.pi * np.cumsum(f0) / sample_rate
    tract = (f0_hz / 120.0) ** 0.35
    formants = [contour(low, high) * tract for low, high in ((300, 800), (900, 2200), (2300, 2900))]
    wave = 0.01 * rng.standard_normal(len(time))
    for harmonic in range(1, int(min(5000.0, 0.45 * sample_rate) / (1.12 * f0_hz)) + 1):
        hz = harmonic * f0
        gain = sum(1.0 / (1.0 + ((hz - formant) / 90.0) ** 2) for formant in formants)
        wave += gain * np.sin(harmonic * phase) / harmonic**0.5
    wave *= 0.65 + 0.35 * np.sin(2.0 * np.pi * 3.3 * time + rng.uniform(0.0, 6.0))
    if len(wave):
        wave *= 0.5 / np.abs(wave).max()
    return wave.astype(np.float32)


def build_encoder(
    path: Path,
    spec: EncoderSpec = TINY_SPEC,
    seed: int = 0,
    flavour: str = "features",
    metadata: dict[str, Any] | None = None,
    gain: float = 1.0,
    **changes: Any,
) -> Path:
    """Write a tiny ONNX encoder to `path`.

    The "features" flavour separates voices of `synthesise` by how their harmonics move through
    the lower mel bins: on 3 s the cosine of one `f0_hz` with itself is about 0.9, and 0.5 at most
    with one a fifth away. Encoders of different seeds give embeddings that do not compare.

    Parameters
    ----------
    spec, seed, flavour
        The output's rotation is drawn from `seed`; `flavour` is "features" or "waveform".
    metadata : dict, optional
        Values to write as JSON besides ``emoinv.spec``; a value of None leaves the key out.
    gain : float
        Factor of the output: 0 or NaN give a model that is broken at run time.
    changes
        ``input_name``, ``output_name``, ``input_shape``, ``output_shape``: what the graph claims.
    """
    rng = np.random.default_rng(seed)
    node = onnx.helper.make_node
    input_name = changes.get("input_name", flavour)
    output_name = changes.get("output_name", "embedding")
    if flavour == "features":
        hidden = max(spec.num_mel_bins // 2, spec.embedding_dim)
        input_shape = changes.get("input_shape", ["batch", "frames", spec.num_mel_bins])
        bins = np.eye(spec.num_mel_bins)
        analysis = (2.0 * bins - np.roll(bins, 1, axis=0) - np.roll(bins, -1, axis=0))[:, :hidden]
        nodes = [node("MatMul", [input_name, "analysis"], ["projected"])]
    else:
        hidden = 64
        input_shape = changes.get("input_shape", ["batch", "samples"])
        analysis = rng.standard_normal((hidden, 1, spec.frame_length))
        nodes = [
            node("Unsqueeze", [input_name, "one"], ["channel"]),
            node("Conv", ["channel", "analysis"], ["filtered"], strides=[spec.frame_shift]),
            node("Transpose", ["filtered"], ["projected"], perm=[0, 2, 1]),
        ]
    nodes += [
        node("Abs", ["projected"], ["magnitude"]),
        node("ReduceMean", ["magnitude"], ["pooled"], axes=[1], keepdims=0),
        node("ReduceMean", ["pooled"], ["level"], axes=[1], keepdims=1),
        node("Sub", ["pooled", "level"], ["centred"]),
        node("MatMul", ["centred", "rotation"], [output_name]),
    ]
    rotation = np.linalg.qr(rng.standard_normal((hidden, max(hidden, spec.embedding_dim))))[0]
    arrays = {
        "analysis": analysis.astype(np.float32),
        "rotation": np.ascontiguousarray(gain * rotation[:, : spec.embedding_dim], np.float32),
        **({"one": np.array([1])} if flavour == "waveform" else {}),
    }
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [value(input_name, onnx.TensorProto.FLOAT, input_shape)],
        [value(output_name, onnx.TensorProto.FLOAT, changes.get("output_shape", ["batch", spec.embedding_dim]))],
        weights,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    values: dict[str, Any] = {"emoinv.spec": json.loads(spec.to_json()), **(metadata or {})}
    texts = {key: json.dumps(entry) for key, entry in values.items() if entry is not None}
    onnx.helper.set_model_props(model, texts)
    path.write_bytes(model.SerializeToString())
    return path


def write_emotional_corpus(
    folder: Path, corpus: str, speakers: int, gender: str, voice: Callable[[int, int, bool], NDArray[np.float32]]
) -> Path:
    """A prepared set of ``voice(speaker, take, emotional)``: six neutral clips of each speaker and three others."""
    from train.prepare import write_set

    with write_set(folder) as add:
        for speaker in range(speakers):
            for take in range(9):
                emotional = take > 5
                samples = np.rint(voice(speaker, take, emotional) * 32767).astype(np.int16)
                emotion = "happy" if emotional else "neutral"
                add((corpus, f"{corpus}-{speaker}", gender, emotion, ""), samples, f"{speaker}-{take}")
    return folder
