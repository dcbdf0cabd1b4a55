"""The front end as part of the graph: waveform in, embedding out, for languages without this library.

DC removal, pre-emphasis, window and Fourier transform are linear in the samples of a frame, so the
four are one matrix; it is applied to all frames as one convolution. Power, mel bank, logarithm and
mean normalisation follow as plain operators. `emoinv_edge.features` stays the definition: the matrix is made
from its window and mel bank, and a test holds the two equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from emoinv_edge.features import mel_bank, window
from emoinv_edge.spec import EncoderSpec

from .graph import FEATURES

__all__ = ["WAVEFORM", "add_frontend", "analysis_matrix"]

WAVEFORM = "waveform"


def analysis_matrix(spec: EncoderSpec) -> NDArray[np.float32]:
    """Frame of samples to real and imaginary spectrum, (2 * bins, frame_length); the Nyquist bin is left out.

    Kaldi gives the Nyquist bin no weight in any mel filter, so it need not be computed.
    """
    n = spec.frame_length
    frame = np.eye(n)
    frame -= frame.mean(axis=0, keepdims=True)  # column j is the response to sample j
    emphasised = frame.copy()
    emphasised[1:] -= spec.preemphasis * frame[:-1]
    emphasised[0] -= spec.preemphasis * frame[0]
    emphasised *= window(spec).astype(np.float64)[:, np.newaxis] / spec.fft_length  # rfft's share, see there
    bins = np.arange(spec.fft_length // 2)[:, np.newaxis]
    phase = 2.0 * np.pi * bins * np.arange(n) / spec.fft_length
    return np.concatenate((np.cos(phase) @ emphasised, -np.sin(phase) @ emphasised)).astype(np.float32)


def add_frontend(encoder: onnx.ModelProto, spec: EncoderSpec) -> onnx.ModelProto:
    """Put the front end of `spec` before an encoder's graph.

    Parameters
    ----------
    encoder : ModelProto
        Input ``features``, from `export.graph.encoder_graph`.

    Returns
    -------
    ModelProto
        Input ``waveform`` (batch, samples), float32 in [-1, 1] at ``spec.sample_rate``; at least one frame.
    """
    bins = spec.fft_length // 2
    constants: dict[str, NDArray[Any]] = {
        "frontend/axes": np.array([1], np.int64),
        "frontend/matrix": analysis_matrix(spec)[:, np.newaxis, :],
        "frontend/halves": np.array([bins, bins], np.int64),
        "frontend/mel": np.ascontiguousarray(mel_bank(spec)[:bins]),
        "frontend/floor": np.array(np.finfo(np.float32).eps, np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Unsqueeze", [WAVEFORM, "frontend/axes"], ["frontend/channel"]),
        node("Conv", ["frontend/channel", "frontend/matrix"], ["frontend/spectrum"], strides=[spec.frame_shift]),
        node("Mul", ["frontend/spectrum", "frontend/spectrum"], ["frontend/squares"]),
        node("Split", ["frontend/squares", "frontend/halves"], ["frontend/real", "frontend/imaginary"], axis=1),
        node("Add", ["frontend/real", "frontend/imaginary"], ["frontend/power"]),
        node("Transpose", ["frontend/power"], ["frontend/frames"], perm=[0, 2, 1]),
        node("MatMul", ["frontend/frames", "frontend/mel"], ["frontend/energies"]),
        node("Max", ["frontend/energies", "frontend/floor"], ["frontend/floored"]),
        node("Log", ["frontend/floored"], ["frontend/log_mel"]),
    ]
    if spec.mean_normalisation:
        nodes += [
            node("ReduceMean", ["frontend/log_mel"], ["frontend/mean"], axes=[1], keepdims=1),
            node("Sub", ["frontend/log_mel", "frontend/mean"], ["frontend/features"]),
        ]
    else:
        nodes.append(node("Identity", ["frontend/log_mel"], ["frontend/features"]))
    for each in nodes:
        each.name = each.output[0]
    value = helper.make_tensor_value_info
    front = helper.make_graph(
        nodes,
        "frontend",
        [value(WAVEFORM, TensorProto.FLOAT, ["batch", "samples"])],
        [value("frontend/features", TensorProto.FLOAT, ["batch", "frames", spec.num_mel_bins])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(front, opset_imports=encoder.opset_import, producer_name=encoder.producer_name)
    model.ir_version = encoder.ir_version
    joined = compose.merge_models(model, encoder, io_map=[("frontend/features", FEATURES)])
    onnx.checker.check_model(joined, full_check=True)
    return joined
