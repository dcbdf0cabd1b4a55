"""ONNX Runtime sessions for the export: one thread, as the runtime opens them."""

from __future__ import annotations

import os

import onnx
import onnxruntime

__all__ = ["open_session"]


def open_session(
    model: onnx.ModelProto | str | os.PathLike[str], optimise: bool = True, **config: str
) -> onnxruntime.InferenceSession:
    """Open a model on the CPU with one thread.

    Parameters
    ----------
    model : ModelProto or path
    optimise : bool
        False runs the graph node by node as written.
    config : str
        Session configuration, with ``.`` written as ``__``, e.g. ``session__x64quantprecision="1"``.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in config.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else os.fspath(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
