"""Writing of an ONNX graph: nodes, weights in float or int8, roundings of activations, and the pooling of an encoder.

Layout
------
In an int8 graph every convolution but the first stands between DequantizeLinear and QuantizeLinear, and a ReLU is the
QuantizeLinear's zero point 0 (below zero is clamped); ONNX Runtime then runs the integer kernels back to back, channels
last, with no conversion between them. Scales of activations are scalars: with tensors of one element ONNX Runtime
1.32 leaves sums in float, which costs a quarter of the time.

The statistics enter the linear layer as two 8-bit parts, a coarse and a fine one, so that its weights need one byte
each and its input keeps 16 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from emoinv_edge.spec import EncoderSpec
from train.model import VARIANCE_FLOOR

__all__ = ["FEATURES", "Affine", "QuantisedWeights", "Writer", "below", "finished"]

OPSET = 17
IR_VERSION = 8  # what ONNX Runtime 1.13 and later read
FEATURES = "features"

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, slots=True)
class Affine:
    """Real value = scale * (integer - zero_point), the integer from 0 to 255."""

    scale: float
    zero_point: int


@dataclasses.dataclass(frozen=True, slots=True)
class QuantisedWeights:
    """A layer's weights in int8, one scale per output channel, and its bias in float.

    `values` has the shape of the float weights: (out, in, bins, frames) or (out, in).
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]


def below(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """What belongs to one branch, by its names within the branch."""
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


class Writer:
    """Nodes and initialisers of a graph under construction.

    Parameters
    ----------
    activations : mapping of tensor name to Affine
        Tensors that are rounded to 8 bits.
    weights : mapping of layer name to QuantisedWeights
        Layers whose weights are in int8; the others keep their float weights.
    prefix : str
        Of every name but the features': of a branch of an encoder that has several.
    """

    def __init__(
        self, activations: Mapping[str, Affine], weights: Mapping[str, QuantisedWeights], prefix: str = ""
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[TensorProto] = []
        self.activations, self.weights = activations, weights
        self._prefix, self._names = prefix, set[str]()

    def branch(self, prefix: str) -> Writer:
        """A writer into the same graph whose names begin with `prefix`."""
        other = Writer(below(prefix, self.activations), below(prefix, self.weights), prefix)
        other.nodes, other.initialisers, other._names = self.nodes, self.initialisers, self._names
        return other

    def _full(self, name: str) -> str:
        return name if name == FEATURES else self._prefix + name

    def constant(self, name: str, values: NDArray[np.generic] | np.generic) -> str:
        """An initialiser; of two of one name the first counts."""
        full = self._full(name)
        if full not in self._names:
            self.initialisers.append(numpy_helper.from_array(np.array(values, order="C"), full))
            self._names.add(full)
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node that is named after the tensor that it makes."""
        given, made = [self._full(name) for name in inputs], self._full(output)
        self.nodes.append(helper.make_node(operator, given, [made], name=made, **attributes))
        return output

    def quantise(self, tensor: str, affine: Affine) -> str:
        """Round `tensor` to `affine`; return the name of the real values that are left of it."""
        scale = self.constant(f"{tensor}/scale", np.float32(affine.scale))
        zero = self.constant(f"{tensor}/zero_point", np.uint8(affine.zero_point))
        self.node("QuantizeLinear", [tensor, scale, zero], f"{tensor}/quantised")
        return self.node("DequantizeLinear", [f"{tensor}/quantised", scale, zero], f"{tensor}/dequantised")

    def rounded(self, tensor: str, make: str, inputs: Sequence[str], relu: bool, **attributes: Any) -> str:
        """The node `make` whose output is `tensor`, a ReLU behind it and its rounding, where there are such."""
        affine = self.activations.get(tensor)
        # ReLU comes free with a rounding that has no room below zero.
        clamps = affine is not None and affine.zero_point == 0
        output = tensor if not relu or clamps else f"{tensor}/sum"
        self.node(make, inputs, output, **attributes)
        if output != tensor:
            self.node("Relu", [output], tensor)
        return tensor if affine is None else self.quantise(tensor, affine)

    def dequantised(self, name: str, quantised: QuantisedWeights, values: NDArray[np.int8], axis: int = 0) -> str:
        """Weights that are stored in int8."""
        inputs = [
            self.constant(f"{name}.weight/quantised", values),
            self.constant(f"{name}.weight/scale", quantised.scale),
            self.constant(f"{name}.weight/zero_point", np.zeros(len(quantised.scale), np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}.weight", axis=axis)

    def convolution(self, name: str, convolution: nn.Conv2d, source: str, relu: bool) -> str:
        """A convolution of `source`, the real values of a tensor that is rounded where `activations` is set."""
        quantised, rounded = self.weights.get(name), self.activations.get(source.removesuffix("/dequantised"))
        if quantised is None:
            inputs = [source, self.constant(f"{name}.weight", convolution.weight.detach().numpy())]
        else:
            inputs = [source, self.dequantised(name, quantised, quantised.values)]
        if convolution.bias is not None:
            values = convolution.bias.detach().numpy() if quantised is None else quantised.bias
            inputs.append(self._bias(name, values, quantised, rounded))
        bins, frames = (int(padding) for padding in convolution.padding)
        more = {} if convolution.dilation == (1, 1) else {"dilations": list(convolution.dilation)}
        return self.rounded(
            name,
            "Conv",
            inputs,
            relu,
            kernel_shape=list(convolution.kernel_size),
            strides=list(convolution.stride),
            pads=[bins, frames, bins, frames],
            **more,
        )

    def _bias(
        self, name: str, values: NDArray[np.float32], quantised: QuantisedWeights | None, rounded: Affine | None
    ) -> str:
        if quantised is None or rounded is None:
            return self.constant(f"{name}.bias", values)
        scale = (quantised.scale * np.float32(rounded.scale)).astype(np.float32)
        steps = np.rint(values.astype(np.float64) / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
        bias = [self.constant(f"{name}.bias/quantised", steps), self.constant(f"{name}.bias/scale", scale)]
        bias.append(self.constant(f"{name}.bias/zero_point", np.zeros(len(steps), np.int32)))
        return self.node("DequantizeLinear", bias, f"{name}.bias", axis=0)

    def pooling(self, last: str, linear: nn.Linear, bias: NDArray[np.float32]) -> str:
        """Mean and standard deviation over frames, in float and in two passes, then a linear layer: ``embedding``."""
        self.node("ReduceMean", [last], "pool/mean", axes=[3], keepdims=1)
        self.node("Sub", [last, "pool/mean"], "pool/centred")
        self.node("ReduceSumSquare", ["pool/centred"], "pool/squares", axes=[3], keepdims=1)
        self.node("Shape", [last], "pool/count/int", start=3, end=4)
        self.node("Cast", ["pool/count/int"], "pool/count", to=TensorProto.FLOAT)
        one = self.constant("pool/one", np.array([1.0], np.float32))
        self.node("Sub", ["pool/count", one], "pool/freedom/raw")
        self.node("Max", ["pool/freedom/raw", one], "pool/freedom")
        self.node("Div", ["pool/squares", "pool/freedom"], "pool/variance")
        floor = self.constant("pool/floor", np.array([VARIANCE_FLOOR], np.float32))
        self.node("Add", ["pool/variance", floor], "pool/floored")
        self.node("Sqrt", ["pool/floored"], "pool/deviation")
        self.node("Flatten", ["pool/mean"], "pool/mean/flat", axis=1)
        self.node("Flatten", ["pool/deviation"], "pool/deviation/flat", axis=1)
        self.node("Concat", ["pool/mean/flat", "pool/deviation/flat"], "statistics", axis=1)
        quantised, rounded = self.weights.get("linear"), self.activations.get("statistics")
        if quantised is None or rounded is None:
            weight = self.constant("linear.weight", linear.weight.detach().numpy())
            inputs = ["statistics", weight, self.constant("linear.bias", bias)]
            return self.node("Gemm", inputs, "embedding", transB=1)
        return self._linear_in_parts(quantised, rounded, bias)

    def _linear_in_parts(self, quantised: QuantisedWeights, rounded: Affine, bias: NDArray[np.float32]) -> str:
        # Both parts lie in one tensor and meet the weights in one product: the fine part is enlarged 255 times
        # and lifted to lie in the coarse part's range, and the lift is taken off with the bias.
        step = rounded.scale
        weight = self.dequantised("linear", quantised, np.ascontiguousarray(quantised.values.T), axis=1)
        coarse = self.quantise("statistics", rounded)
        self.node("Sub", ["statistics", coarse], "statistics/rest")
        enlarge = self.constant("statistics/255", np.float32(255.0))
        self.node("Mul", ["statistics/rest", enlarge], "statistics/enlarged")
        lift = self.constant("statistics/lift", np.float32(128.0 * step))
        self.node("Add", ["statistics/enlarged", lift], "statistics/fine")
        axes = self.constant("statistics/axes", np.array([1], np.int64))
        parts = [self.node("Unsqueeze", [part, axes], f"{part}/row") for part in (coarse, "statistics/fine")]
        self.node("Concat", parts, "statistics/parts", axis=1)
        self.node("MatMul", [self.quantise("statistics/parts", rounded), weight], "linear/parts")
        shares = self.constant("linear/shares", np.array([[1.0], [1.0 / 255.0]], np.float32))
        self.node("Mul", ["linear/parts", shares], "linear/shared")
        self.node("ReduceSum", ["linear/shared", axes], "linear/product", keepdims=0)
        taken = 128.0 * step / 255.0 * (quantised.values.astype(np.float64).sum(axis=1) * quantised.scale)
        return self.node(
            "Add", ["linear/product", self.constant("linear.bias", (bias - taken).astype(np.float32))], "embedding"
        )


def finished(w: Writer, spec: EncoderSpec) -> onnx.ModelProto:
    """The checked graph, from ``features`` to ``embedding``, without metadata."""
    graph = helper.make_graph(
        w.nodes,
        "encoder",
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", "frames", spec.num_mel_bins])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", spec.embedding_dim])],
        w.initialisers,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="emoinv-edge export")
    proto.ir_version = IR_VERSION
    onnx.checker.check_model(proto, full_check=True)
    return proto
