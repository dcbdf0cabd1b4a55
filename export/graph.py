"""The ONNX graph of an encoder, written layer by layer, in float or in int8 (`export.writer`).

The graph is written rather than traced: every tensor has the name of the layer that makes it, the
same function writes the float and the quantised graph, and nothing is left to an exporter's taste.
That it computes what torch computes is not assumed: see `export.gates`.

The first convolution stays in float: it has one input channel, for which the integer kernels are
slower than the float one, and the features' range is long (digital silence lies 30 below the mean).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

import numpy as np
import onnx
from torch import nn

from emoinv_edge.spec import EncoderSpec
from train.branches import BranchedEncoder
from train.model import BasicBlock, ResidualEncoder, SpeakerNet
from train.tdnn import DenseTdnn

from .tdnn_graph import tdnn_layers, tdnn_tensors, write_tdnn
from .writer import FEATURES, Affine, QuantisedWeights, Writer, finished

__all__ = [
    "FEATURES",
    "Affine",
    "Layer",
    "QuantisedWeights",
    "branches",
    "encoder_graph",
    "layers",
    "stages",
    "tensors",
    "weighted",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """One step of the residual encoder up to the pooling: a convolution or a residual sum.

    `name` is also the name of the tensor that it makes, after the ReLU where there is one.
    """

    name: str
    inputs: tuple[str, ...]
    convolution: nn.Conv2d | None
    relu: bool


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


def weighted(model: SpeakerNet) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers whose weights may be in int8, by name."""
    if isinstance(model, BranchedEncoder):
        return {f"{prefix}{name}": layer for prefix, each in branches(model) for name, layer in weighted(each).items()}
    if isinstance(model, DenseTdnn):
        return {**tdnn_layers(model), "linear": model.linear}
    assert isinstance(model, ResidualEncoder)
    found = {layer.name: layer.convolution for layer in layers(model) if layer.convolution is not None}
    return {**found, "linear": model.linear}


def tensors(model: SpeakerNet) -> list[str]:
    """The tensors that may be rounded to 8 bits; of an encoder's own, ``statistics`` is the last."""
    if isinstance(model, BranchedEncoder):
        return [f"{prefix}{name}" for prefix, each in branches(model) for name in tensors(each)]
    if isinstance(model, DenseTdnn):
        return [*tdnn_tensors(model), "statistics"]
    assert isinstance(model, ResidualEncoder)
    return [*(layer.name for layer in layers(model)), "statistics"]


def branches(model: BranchedEncoder) -> list[tuple[str, SpeakerNet]]:
    """The branches of an encoder, each with what its names begin with."""
    return [(f"branch{n}.", cast(SpeakerNet, branch)) for n, branch in enumerate(model.branches, 1)]


def encoder_graph(
    model: SpeakerNet,
    spec: EncoderSpec,
    activations: Mapping[str, Affine] | None = None,
    weights: Mapping[str, QuantisedWeights] | None = None,
) -> onnx.ModelProto:
    """Write the graph of an encoder.

    Parameters
    ----------
    model : ResidualEncoder, DenseTdnn or BranchedEncoder
    spec : EncoderSpec
    activations : mapping of tensor name to Affine, optional
        Outputs of layers, and ``"statistics"``, that are rounded to 8 bits.
    weights : mapping of layer name to QuantisedWeights, optional
        Layers whose weights are in int8; ``"linear"`` too. Others keep their float weights.

    Returns
    -------
    onnx.ModelProto
        Input ``features`` (batch, frames, num_mel_bins), output ``embedding`` (batch, embedding_dim),
        without metadata.
    """
    w = Writer(activations or {}, weights or {})
    _write(w, model)
    return finished(w, spec)


def _write(w: Writer, model: SpeakerNet) -> str:
    """Write the nodes from the features to the ``embedding``."""
    if isinstance(model, BranchedEncoder):
        return _join(w, model)
    axes = w.constant("image/axes", np.array([1], np.int64))
    w.node("Transpose", [FEATURES], "features/transposed", perm=[0, 2, 1])
    image = w.node("Unsqueeze", ["features/transposed", axes], "image")
    if isinstance(model, DenseTdnn):
        return write_tdnn(w, model, image)
    assert isinstance(model, ResidualEncoder)
    real = {FEATURES: image}
    for layer in layers(model):
        inputs = [real[name] for name in layer.inputs]
        if layer.convolution is None:
            real[layer.name] = w.rounded(layer.name, "Add", inputs, layer.relu)
        else:
            real[layer.name] = w.convolution(layer.name, layer.convolution, inputs[0], layer.relu)
    bias = model.linear.bias.detach().numpy() - model.mean_vector.detach().numpy()
    return w.pooling(real[layers(model)[-1].name], model.linear, bias)


def _join(w: Writer, model: BranchedEncoder) -> str:
    """The branches side by side, each at unit norm times the root of its share, all times the first one's norm."""
    parts, norms = [], []
    for (prefix, branch), share in zip(branches(model), model.shape.shares, strict=True):
        embedding = prefix + _write(w.branch(prefix), branch)
        norms.append(w.node("ReduceL2", [embedding], f"{prefix}norm", axes=[1], keepdims=1))
        w.node("Div", [embedding, norms[-1]], f"{prefix}unit")
        root = w.constant(f"{prefix}share", np.float32(np.sqrt(share)))
        parts.append(w.node("Mul", [f"{prefix}unit", root], f"{prefix}part"))
    w.node("Concat", parts, "joined", axis=1)
    return w.node("Mul", ["joined", norms[0]], "embedding")
