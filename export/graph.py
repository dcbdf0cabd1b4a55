"""The ONNX graph of a `ResidualEncoder`, written layer by layer, in float or in int8.

The graph is written rather than traced: every tensor has the name of the layer that makes it, the
same function writes the float and the quantised graph, and nothing is left to an exporter's taste.
That it computes what torch computes is not assumed: see `export.gates`.

Layout
------
In the int8 graph every convolution but the first and every residual sum stands between
DequantizeLinear and QuantizeLinear, and a ReLU is the QuantizeLinear's zero point 0 (below zero is
clamped); ONNX Runtime then runs QLinearConv and QLinearAdd back to back, channels last, with no
conversion between them. Scales of activations are scalars: with tensors of one element ONNX Runtime
1.32 leaves the sums in float, which costs a quarter of the time.

The first convolution stays in float: it has one input channel, for which the integer kernels are
slower than the float one, and the features' range is long (digital silence lies 30 below the mean).
The statistics enter the linear layer as two 8-bit parts, a coarse and a fine one, so that its weights
need one byte each and its input keeps 16 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from emoinv_edge.spec import EncoderSpec
from train.model import VARIANCE_FLOOR, BasicBlock, ResidualEncoder

__all__ = ["FEATURES", "Affine", "Layer", "QuantisedWeights", "encoder_graph", "layers", "stages"]

OPSET = 17
IR_VERSION = 8  # what ONNX Runtime 1.13 and later read
FEATURES = "features"


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """One step of the encoder up to the pooling: a convolution or a residual sum.

    `name` is also the name of the tensor that it makes, after the ReLU where there is one.
    """

    name: str
    inputs: tuple[str, ...]
    convolution: nn.Conv2d | None
    relu: bool


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


def stages(model: ResidualEncoder) -> list[list[BasicBlock]]:
    """The blocks of `model`, stage by stage."""
    return [[cast(BasicBlock, block) for block in cast(nn.Sequential, stage)] for stage in model.stages]


def layers(model: ResidualEncoder) -> list[Layer]:
    """The steps of `model` from the features to the last activations, in the order of computation."""
    steps = [Layer("stem", (FEATURES,), model.stem, True)]
    here = "stem"
    for s, stage in enumerate(stages(model), 1):
        for b, block in enumerate(stage, 1):
            name = f"stage{s}.block{b}"
            steps.append(Layer(f"{name}.conv1", (here,), block.conv1, True))
            steps.append(Layer(f"{name}.conv2", (f"{name}.conv1",), block.conv2, False))
            other = here
            if isinstance(block.shortcut, nn.Conv2d):
                other = f"{name}.shortcut"
                steps.append(Layer(other, (here,), block.shortcut, False))
            steps.append(Layer(name, (f"{name}.conv2", other), None, True))
            here = name
    return steps


class _Writer:
    """Nodes and initialisers of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[TensorProto] = []
        self._names: set[str] = set()

    def constant(self, name: str, values: NDArray[np.generic] | np.generic) -> str:
        if name not in self._names:
            self.initialisers.append(numpy_helper.from_array(np.array(values, order="C"), name))
            self._names.add(name)
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def quantise(self, tensor: str, affine: Affine) -> str:
        """Round `tensor` to `affine`; return the name of the real values that are left of it."""
        scale = self.constant(f"{tensor}/scale", np.float32(affine.scale))
        zero = self.constant(f"{tensor}/zero_point", np.uint8(affine.zero_point))
        self.node("QuantizeLinear", [tensor, scale, zero], f"{tensor}/quantised")
        return self.node("DequantizeLinear", [f"{tensor}/quantised", scale, zero], f"{tensor}/dequantised")

    def weights(self, name: str, quantised: QuantisedWeights, values: NDArray[np.int8], axis: int = 0) -> str:
        inputs = [
            self.constant(f"{name}.weight/quantised", values),
            self.constant(f"{name}.weight/scale", quantised.scale),
            self.constant(f"{name}.weight/zero_point", np.zeros(len(quantised.scale), np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}.weight", axis=axis)


def encoder_graph(
    model: ResidualEncoder,
    spec: EncoderSpec,
    activations: Mapping[str, Affine] | None = None,
    weights: Mapping[str, QuantisedWeights] | None = None,
) -> onnx.ModelProto:
    """Write the graph of an encoder.

    Parameters
    ----------
    model : ResidualEncoder
    spec : EncoderSpec
    activations : mapping of tensor name to Affine, optional
        Outputs of `layers`, and ``"statistics"``, that are rounded to 8 bits.
    weights : mapping of layer name to QuantisedWeights, optional
        Layers whose weights are in int8; ``"linear"`` too. Others keep their float weights.

    Returns
    -------
    onnx.ModelProto
        Input ``features`` (batch, frames, num_mel_bins), output ``embedding`` (batch, embedding_dim),
        without metadata.
    """
    activations, weights = activations or {}, weights or {}
    w = _Writer()
    axes = w.constant("image/axes", np.array([1], np.int64))
    w.node("Transpose", [FEATURES], "features/transposed", perm=[0, 2, 1])
    real = {FEATURES: w.node("Unsqueeze", ["features/transposed", axes], "image")}
    for layer in layers(model):
        rounded = activations.get(layer.name)
        # ReLU comes free with a rounding that has no room below zero.
        clamps = rounded is not None and rounded.zero_point == 0
        output = layer.name if not layer.relu or clamps else f"{layer.name}/sum"
        inputs = [real[name] for name in layer.inputs]
        if layer.convolution is None:
            w.node("Add", inputs, output)
        else:
            _convolution(w, layer, inputs[0], activations.get(layer.inputs[0]), weights.get(layer.name), output)
        if output != layer.name:
            w.node("Relu", [output], layer.name)
        real[layer.name] = layer.name if rounded is None else w.quantise(layer.name, rounded)
    _pooling(w, model, real[layers(model)[-1].name], weights.get("linear"), activations.get("statistics"))
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


def _convolution(
    w: _Writer, layer: Layer, source: str, rounded: Affine | None, quantised: QuantisedWeights | None, output: str
) -> None:
    convolution = layer.convolution
    assert convolution is not None
    name = layer.name
    if quantised is None:
        kernel = convolution.weight.detach().numpy()
        inputs = [source, w.constant(f"{name}.weight", kernel)]
    else:
        inputs = [source, w.weights(name, quantised, quantised.values)]
    if quantised is not None and rounded is not None:
        scale = (quantised.scale * np.float32(rounded.scale)).astype(np.float32)
        steps = np.rint(quantised.bias.astype(np.float64) / scale).clip(-(2**31), 2**31 - 1).astype(np.int32)
        bias = [w.constant(f"{name}.bias/quantised", steps), w.constant(f"{name}.bias/scale", scale)]
        bias.append(w.constant(f"{name}.bias/zero_point", np.zeros(len(steps), np.int32)))
        inputs.append(w.node("DequantizeLinear", bias, f"{name}.bias", axis=0))
    else:
        assert convolution.bias is not None
        values = convolution.bias.detach().numpy() if quantised is None else quantised.bias
        inputs.append(w.constant(f"{name}.bias", values))
    bins, frames = (int(padding) for padding in convolution.padding)
    w.node(
        "Conv",
        inputs,
        output,
        kernel_shape=list(convolution.kernel_size),
        strides=list(convolution.stride),
        pads=[bins, frames, bins, frames],
    )


def _pooling(
    w: _Writer, model: ResidualEncoder, source: str, quantised: QuantisedWeights | None, rounded: Affine | None
) -> None:
    """Mean and standard deviation over frames, in float and in two passes, then the linear layer."""
    last = source
    w.node("ReduceMean", [last], "pool/mean", axes=[3], keepdims=1)
    w.node("Sub", [last, "pool/mean"], "pool/centred")
    w.node("ReduceSumSquare", ["pool/centred"], "pool/squares", axes=[3], keepdims=1)
    w.node("Shape", [last], "pool/count/int", start=3, end=4)
    w.node("Cast", ["pool/count/int"], "pool/count", to=TensorProto.FLOAT)
    one = w.constant("pool/one", np.array([1.0], np.float32))
    w.node("Sub", ["pool/count", one], "pool/freedom/raw")
    w.node("Max", ["pool/freedom/raw", one], "pool/freedom")
    w.node("Div", ["pool/squares", "pool/freedom"], "pool/variance")
    w.node("Add", ["pool/variance", w.constant("pool/floor", np.array([VARIANCE_FLOOR], np.float32))], "pool/floored")
    w.node("Sqrt", ["pool/floored"], "pool/deviation")
    w.node("Flatten", ["pool/mean"], "pool/mean/flat", axis=1)
    w.node("Flatten", ["pool/deviation"], "pool/deviation/flat", axis=1)
    w.node("Concat", ["pool/mean/flat", "pool/deviation/flat"], "statistics", axis=1)
    values = model.linear.bias.detach().numpy() - model.mean_vector.detach().numpy()
    if quantised is None or rounded is None:
        weight = w.constant("linear.weight", model.linear.weight.detach().numpy())
        w.node("Gemm", ["statistics", weight, w.constant("linear.bias", values)], "embedding", transB=1)
        return
    # Both parts lie in one tensor and meet the weights in one product: the fine part is enlarged 255 times
    # and lifted to lie in the coarse part's range, and the lift is taken off with the bias.
    step = rounded.scale
    weight = w.weights("linear", quantised, np.ascontiguousarray(quantised.values.T), axis=1)
    coarse = w.quantise("statistics", rounded)
    w.node("Sub", ["statistics", coarse], "statistics/rest")
    w.node("Mul", ["statistics/rest", w.constant("statistics/255", np.float32(255.0))], "statistics/enlarged")
    w.node("Add", ["statistics/enlarged", w.constant("statistics/lift", np.float32(128.0 * step))], "statistics/fine")
    axes = w.constant("statistics/axes", np.array([1], np.int64))
    parts = [w.node("Unsqueeze", [part, axes], f"{part}/row") for part in (coarse, "statistics/fine")]
    w.node("Concat", parts, "statistics/parts", axis=1)
    w.node("MatMul", [w.quantise("statistics/parts", rounded), weight], "linear/parts")
    shares = w.constant("linear/shares", np.array([[1.0], [1.0 / 255.0]], np.float32))
    w.node("Mul", ["linear/parts", shares], "linear/shared")
    w.node("ReduceSum", ["linear/shared", axes], "linear/product", keepdims=0)
    lift = 128.0 * step / 255.0 * (quantised.values.astype(np.float64).sum(axis=1) * quantised.scale)
    w.node("Add", ["linear/product", w.constant("linear.bias", (values - lift).astype(np.float32))], "embedding")
