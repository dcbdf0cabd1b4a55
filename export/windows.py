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
_POOLED = "pool/mean"  # of each branch


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
    _, window, hop = geometry(graph)
    nodes: list[onnx.NodeProto] = []
    pooled = [_Pooling(body, nodes, prefix, stride, window, hop) for prefix, stride in _branches(graph).items()]
    rows = pooled[0].whole
    for number, branch in enumerate(pooled[1:], 1):
        rows = _node(nodes, "Min", [rows, branch.whole], f"rows{number}")
    for branch in pooled:
        branch.write(rows)
    body.node.extend([*nodes, *_linear(body, [branch.prefix for branch in pooled])])
    size = body.output[0].type.tensor_type.shape.dim[1].dim_value
    body.output.append(helper.make_tensor_value_info("windows", TensorProto.FLOAT, ["rows", size]))
    onnx.checker.check_model(model, full_check=True)
    return model


def geometry(graph: onnx.ModelProto) -> tuple[int, int, int]:
    """Frames of features to one frame of the last activations, in a window, and from one window to the next.

    The last two are as near to `WINDOW` and `HOP` as whole frames of activations come. Of several branches the one
    with the coarsest activations decides.
    """
    strides = _branches(graph).values()
    stride = max(strides)
    if any(stride % other for other in strides):
        raise ValueError(f"expected branches whose strides divide each other, got {sorted(strides)}")
    return stride, round(WINDOW / stride) * stride, round(HOP / stride) * stride


def _branches(graph: onnx.ModelProto) -> dict[str, int]:
    """What the names of each branch begin with, and its frames of features to one frame of the last activations."""
    makers = _makers(graph.graph)
    prefixes = [name.removesuffix(_POOLED) for name in makers if name.endswith(_POOLED) and name[:8] != _MADE]
    if not prefixes or any(f"{prefix}statistics" not in makers for prefix in prefixes):
        raise ValueError("expected a graph of `python -m export`, got one without the tensor 'pool/mean'")
    strides = {}
    for prefix in prefixes:
        stride, tensor = 1, makers[prefix + _POOLED].input[0]
        while tensor in makers:
            node = makers[tensor]
            if node.op_type == "Conv":
                stride *= next(tuple(entry.ints) for entry in node.attribute if entry.name == "strides")[1]
            tensor = node.input[0]
        strides[prefix] = stride
    return strides


def _makers(body: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Every tensor that a node makes, with that node."""
    return {output: node for node in body.node for output in node.output}


def _node(nodes: list[onnx.NodeProto], operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
    nodes.append(helper.make_node(operator, inputs, [_MADE + output], name=_MADE + output, **attributes))
    return _MADE + output


class _Pooling:
    """The pooling of one branch over windows; `whole` is how many of them begin and end in the frames, at least one."""

    def __init__(
        self, body: onnx.GraphProto, nodes: list[onnx.NodeProto], prefix: str, stride: int, window: int, hop: int
    ) -> None:
        self._body, self._nodes, self.prefix = body, nodes, prefix
        self._length, self._hop = window // stride, hop // stride
        self._frames = _makers(body)[prefix + _POOLED].input[0]
        count = self._made("Shape", [self._frames], "count", start=3, end=4)
        beyond = self._made("Sub", [count, self._constant("length", np.array([self._length], np.int64))], "beyond")
        steps = self._made("Div", [beyond, self._constant("hop", np.array([self._hop], np.int64))], "steps")
        one = self._constant("one", np.array([1], np.int64))
        self.whole = self._made("Max", [self._made("Add", [steps, one], "whole/raw"), one], "whole")

    def _constant(self, name: str, values: Any) -> str:
        full = _MADE + self.prefix + name
        self._body.initializer.append(numpy_helper.from_array(np.array(values), full))
        return full

    def _made(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        return _node(self._nodes, operator, inputs, self.prefix + output, **attributes)

    def write(self, rows: str) -> None:
        """Mean and standard deviation of the first `rows` windows, ``statistics``: a row each."""
        length, frames = self._length, self._frames
        # Windows that begin in the frames but end beyond them hold what there is; those but the first are cut off.
        window = {
            "kernel_shape": [1, length], "strides": [1, self._hop], "pads": [0, 0, 0, length - 1],
            "count_include_pad": 0,
        }  # fmt: skip
        none = self._constant("none", np.array([0], np.int64))
        axis = self._constant("axis", np.array([3], np.int64))

        def pooled(source: str, output: str) -> str:
            every = self._made("AveragePool", [source], f"{output}/all", **window)
            return self._made("Slice", [every, none, rows, axis], output)

        mean = pooled(frames, "mean")
        square = pooled(self._made("Mul", [frames, frames], "frames/square"), "square")
        spread = self._made("Sub", [square, self._made("Mul", [mean, mean], "mean/square")], "variance/raw")
        zero = self._constant("zero", np.array(0.0, np.float32))
        spread = self._made("Max", [spread, zero], "variance/positive")
        unbiased = self._constant("unbiased", np.array(length / (length - 1), np.float32))
        spread = self._made("Mul", [spread, unbiased], "variance")
        floor = self._constant("floor", np.array(VARIANCE_FLOOR, np.float32))
        floored = self._made("Add", [spread, floor], "floored")
        parts = []
        for name, values in (("mean", mean), ("deviation", self._made("Sqrt", [floored], "deviation"))):
            by_window = self._made("Transpose", [values], f"{name}/rows", perm=[0, 3, 1, 2])
            # (batch, windows, channels * bins), then batch and windows in one.
            shape = self._constant(f"{name}/shape", np.array([0, 0, -1], np.int64))
            parts.append(self._made("Reshape", [by_window, shape], f"{name}/flat"))
        joined = self._made("Concat", parts, "statistics/batches", axis=2)
        size = _statistics_size(self._body, self.prefix)
        shape = self._constant("statistics/shape", np.array([-1, size], np.int64))
        self._made("Reshape", [joined, shape], "statistics")


def _statistics_size(body: onnx.GraphProto, prefix: str) -> int:
    """Columns of the statistics: rows of the linear layer's weights, however these are kept."""
    for tensor in body.initializer:
        if tensor.name in (f"{prefix}linear.weight", f"{prefix}linear.weight/quantised"):
            return int(max(tensor.dims))
    raise ValueError("expected a linear layer, got a graph without 'linear.weight'")


def _linear(body: onnx.GraphProto, prefixes: list[str]) -> list[onnx.NodeProto]:
    """The nodes from the statistics to the embedding once more, from the windows' statistics to ``windows``."""
    renamed = {f"{prefix}statistics": f"{_MADE}{prefix}statistics" for prefix in prefixes}
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
