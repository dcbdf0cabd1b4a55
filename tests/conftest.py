"""What several test files share: synthetic speech and tiny encoders, made here, never fetched."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from emoinv_edge.encoder import Encoder
from emoinv_edge.spec import EncoderSpec

# On a busy machine one example may take any time; what is slow is found by pytest --durations.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# A shell that starts us in the background has SIGINT ignored, and every child would inherit that;
# the tests of ctrl-C need it as at a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_SPEC = EncoderSpec(name="tiny", embedding_dim=32)


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


@functools.lru_cache(maxsize=128)
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


def write_moody_corpus(
    folder: Path, corpus: str, speakers: int, gender: str, voice: Callable[[int, int, bool], NDArray[np.float32]]
) -> Path:
    """A prepared set: each speaker's six neutral clips and three in another mood, ``voice(speaker, take, moody)``."""
    from train.prepare import write_set

    with write_set(folder) as add:
        for speaker in range(speakers):
            for take in range(9):
                moody = take > 5
                samples = np.rint(voice(speaker, take, moody) * 32767).astype(np.int16)
                mood = "happy" if moody else "neutral"
                add((corpus, f"{corpus}-{speaker}", gender, mood, ""), samples, f"{speaker}-{take}")
    return folder


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

    The "features" flavour tells voices of `synthesise` apart by how their harmonics move through
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


@pytest.fixture(scope="session")
def speechlike() -> Callable[..., NDArray[np.float32]]:
    """The function `synthesise(seconds, seed, f0_hz=120.0, sample_rate=16000)`."""
    return synthesise


@pytest.fixture
def make_encoder(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a tiny encoder and returns its path; arguments as for `build_encoder`."""
    count = 0

    def make(**arguments: Any) -> Path:
        nonlocal count
        count += 1
        return build_encoder(tmp_path / f"encoder-{count}.onnx", **arguments)

    return make


@pytest.fixture(scope="session")
def tiny_encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with random weights, 80 mel bins and 32 dimensions, without calibration."""
    return build_encoder(tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="session")
def tiny_encoder(tiny_encoder_path: Path) -> Encoder:
    """The encoder of `tiny_encoder_path`."""
    return Encoder(tiny_encoder_path)
