"""The second output of a model file: embeddings of windows within the speech, for hardly more time than one.

The activations before the pooling are pooled once more, over short windows, and every window goes through the
same linear layer as the whole. So one inference gives what the whole sounds like and whether it stays one voice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from train.model import VARIANCE_FLOOR

__all__ = ["HOP", "WINDOW", "add_windows", "geometry"]

WINDOW = 150  # frames of features
HOP = 50

_MADE = "windows/"  # names of everything that is added


def add_windows(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with the output ``windows`` beside ``embedding``; as it is where it has one.

    Parameters
    ----------
    graph : onnx.ModelProto
        From `export.graph.encoder_graph`, in float or int8, with its own front end or without.

    Returns
    -------
    onnx.ModelProto
        ``windows`` (rows, embedding_dim), not of unit norm: of one item, a row for every hop that a window fits in
        (see `geometry`), at least one, of what there is.

    Raises
    ------
    ValueError
        If the graph has no pooling of this project's.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    body = model.graph
    if any(output.name == "windows" for output in body.output):
        return model
    stride, window, hop = geometry(graph)
    nodes = _pooled(body, _makers(body)["pool/mean"].input[0], window // stride, hop // stride)
    nodes += _linear(body)
    body.node.extend(nodes)
    size = body.output[0].type.tensor_type.shape.dim[1].dim_value
    body.output.append(helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["rows", size]))
    onnx.checker.check_model(model, full_check=True)
    return model


def geometry(graph: onnx.ModelProto) -> tuple[int, int, int]:
    """Frames of features to one frame of the last activations, in a window, and from one window to the next.

    The last two are as near to `WINDOW` and `HOP` as whole frames of activations come.
    """
    makers = _makers(graph.graph)
    if "pool/mean" not in makers or "statistics" not in makers:
        raise ValueError("expected a graph of `python -m export`, got one without the tensor 'pool/mean'")
    stride, tensor = 1, makers["pool/mean"].input[0]
    while tensor in makers:
        node = makers[tensor]
        if node.op_type == "Conv":
            stride *= next(tuple(entry.ints) for entry in node.attribute if entry.name == "strides")[1]
        tensor = node.input[0]
    return stride, round(WINDOW / stride) * stride, round(HOP / stride) * stride


def _makers(body: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Every tensor that a node makes, with that node."""
    return {output: node for node in body.node for output in node.output}


def _pooled(body: onnx.GraphProto, frames: str, length: int, hop: int) -> list[onnx.NodeProto]:
    """Mean and standard deviation of every window of `frames`, (batch, channels, bins, frames): a row each."""
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: Any) -> str:
        body.initializer.append(numpy_helper.from_array(np.array(values), _MADE + name))
        return _MADE + name

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [_MADE + output], name=_MADE + output, **attributes))
        return _MADE + output

    # Windows that begin in the frames but end beyond them hold what there is; those but the first are cut off.
    window = {"kernel_shape": [1, length], "strides": [1, hop], "pads": [0, 0, 0, length - 1], "count_include_pad": 0}
    count = node("Shape", [frames], "count", start=3, end=4)
    beyond = node("Sub", [count, constant("length", np.array([length], np.int64))], "beyond")
    steps = node("Div", [beyond, constant("hop", np.array([hop], np.int64))], "steps")
    one = constant("one", np.array([1], np.int64))
    whole = node("Max", [node("Add", [steps, one], "whole/raw"), one], "whole")
    none, axis = constant("none", np.array([0], np.int64)), constant("axis", np.array([3], np.int64))

    def pooled(source: str, output: str) -> str:
        return node("Slice", [node("AveragePool", [source], f"{output}/all", **window), none, whole, axis], output)

    mean = pooled(frames, "mean")
    square = pooled(node("Mul", [frames, frames], "frames/square"), "square")
    spread = node("Sub", [square, node("Mul", [mean, mean], "mean/square")], "variance/raw")
    spread = node("Max", [spread, constant("zero", np.array(0.0, np.float32))], "variance/positive")
    unbiased = np.array(length / (length - 1), np.float32)
    spread = node("Mul", [spread, constant("unbiased", unbiased)], "variance")
    floored = node("Add", [spread, constant("floor", np.array(VARIANCE_FLOOR, np.float32))], "floored")
    parts = []
    for name, values in (("mean", mean), ("deviation", node("Sqrt", [floored], "deviation"))):
        rows = node("Transpose", [values], f"{name}/rows", perm=[0, 3, 1, 2])
        # (batch, windows, channels * bins), then batch and windows in one.
        flat = node("Reshape", [rows, constant(f"{name}/shape", np.array([0, 0, -1], np.int64))], f"{name}/flat")
        parts.append(flat)
    joined = node("Concat", parts, "statistics/batches", axis=2)
    channels = _statistics_size(body)
    node("Reshape", [joined, constant("statistics/shape", np.array([-1, channels], np.int64))], "statistics")
    return nodes


def _statistics_size(body: onnx.GraphProto) -> int:
    """Columns of the statistics: rows of the linear layer's weights, however these are kept."""
    for tensor in body.initializer:
        if tensor.name in ("linear.weight", "linear.weight/quantised"):
            return max(tensor.dims)
    raise ValueError("expected a linear layer, got a graph without 'linear.weight'")


def _linear(body: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes from the statistics to the embedding once more, from the windows' statistics to ``windows``."""
    renamed = {"statistics": f"{_MADE}statistics"}
    copies = []
    for node in body.node:
        if not any(name in renamed for name in node.input):
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for output in node.output:
            renamed[output] = "windows" if output == "embedding" else _MADE + output
        copy.name = _MADE + node.name
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed[name] for name in node.output]
        copies.append(copy)
    return copies
