"""The ONNX graph of a `DenseTdnn`: its layers, and how they are written."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import nn

from train.model import BasicBlock
from train.tdnn import DenseBlock, DenseLayer, DenseTdnn, Reads

from .writer import Writer

__all__ = ["even_channels", "tdnn_layers", "tdnn_tensors", "write_tdnn"]


def tdnn_layers(model: DenseTdnn) -> dict[str, nn.Conv2d]:
    """The convolutions whose weights may be in int8, by name; those of the masks are small and stay in float."""
    found = {"stem": model.stem}
    for number, block in enumerate(_image(model), 1):
        found |= {f"image{number}.conv1": block.conv1, f"image{number}.conv2": block.conv2}
        if isinstance(block.shortcut, nn.Conv2d):
            found[f"image{number}.shortcut"] = block.shortcut
    found |= {"narrow": model.narrow, "frame": model.frame}
    for b, dense in enumerate(_blocks(model), 1):
        for i, layer in enumerate(_layers(dense), 1):
            found |= {f"block{b}.layer{i}.squeeze": layer.squeeze, f"block{b}.layer{i}.local": layer.local}
        found[f"block{b}.transit"] = dense.transit
    return found


def tdnn_tensors(model: DenseTdnn) -> list[str]:
    """The tensors that may be rounded to 8 bits."""
    sums = [f"image{number}" for number in range(1, len(model.image) + 1)]
    read = [f"block{b}.layer{i}.reads" for b, n in enumerate(model.shape.layers, 1) for i in range(1, n + 1)]
    read += [f"block{b}.reads" for b in range(1, len(model.blocks) + 1)]
    return [*tdnn_layers(model), *sums, *read]


def even_channels(model: DenseTdnn, peaks: Mapping[str, NDArray[np.float64]]) -> DenseTdnn:
    """The same function with the channels that each layer adds of equal size, so that one scale suits all of them.

    Parameters
    ----------
    peaks : mapping of tensor name to ndarray, shape (channels,)
        Largest magnitudes in every channel of the tensors ``blockB.layerI.local``.
    """
    even = copy.deepcopy(model)
    for b, dense in enumerate(_blocks(even), 1):
        start = dense.channels - len(dense.layers) * even.shape.growth
        for i, local in enumerate(dense.locals(), 1):
            factors = 1.0 / np.maximum(peaks[f"block{b}.layer{i}.local"], 1e-6)
            dense.scale(local, start, torch.from_numpy(factors).float())
            start += even.shape.growth
    return even


def _image(model: DenseTdnn) -> list[BasicBlock]:
    return [cast(BasicBlock, block) for block in model.image]


def _blocks(model: DenseTdnn) -> list[DenseBlock]:
    return [cast(DenseBlock, block) for block in model.blocks]


def _layers(block: DenseBlock) -> list[DenseLayer]:
    return [cast(DenseLayer, layer) for layer in block.layers]


def write_tdnn(w: Writer, model: DenseTdnn, image: str) -> str:
    """Write `model` behind the features as an image (batch, 1, bins, frames); the name of the embedding."""
    here = w.convolution("stem", model.stem, image, relu=True)
    for number, block in enumerate(_image(model), 1):
        name = f"image{number}"
        first = w.convolution(f"{name}.conv1", block.conv1, here, relu=True)
        second = w.convolution(f"{name}.conv2", block.conv2, first, relu=False)
        if isinstance(block.shortcut, nn.Conv2d):
            here = w.convolution(f"{name}.shortcut", block.shortcut, here, relu=False)
        here = w.rounded(name, "Add", [second, here], relu=True)
    here = w.convolution("narrow", model.narrow, here, relu=True)
    here = w.convolution("frame", model.frame, here, relu=True)
    _segments(w, here, model.shape.segment)
    last = len(model.blocks)
    for b, dense in enumerate(_blocks(model), 1):
        parts = [here]
        for i, layer in enumerate(_layers(dense), 1):
            parts.append(_layer(w, f"block{b}.layer{i}", layer, parts))
        read = _reads(w, f"block{b}", dense.reads, parts)
        here = w.convolution(f"block{b}.transit", dense.transit, read, relu=b == last)
    return w.pooling(here, model.linear, model.linear.bias.detach().numpy())


def _segments(w: Writer, frames: str, segment: int) -> None:
    """``segments/means`` (frames, segments) and ``segments/within`` (segments, frames), as `DenseTdnn.segments`."""
    one = w.constant("segments/one", np.array([1.0], np.float32))
    first = w.constant("segments/first", np.array([0], np.int64))
    size = w.constant("segments/size", np.array([float(segment)], np.float32))
    # The number of each frame: one less than how many ones there are up to it.
    w.node("Slice", [frames, first, w.constant("segments/second", np.array([1], np.int64)),
                     w.constant("segments/channels", np.array([1], np.int64))], "segments/channel")  # fmt: skip
    w.node("ReduceMax", ["segments/channel"], "segments/values", axes=[0, 1, 2], keepdims=0)
    w.node("Equal", ["segments/values", "segments/values"], "segments/true")
    w.node("Cast", ["segments/true"], "segments/ones", to=TensorProto.FLOAT)
    w.node("CumSum", ["segments/ones", w.constant("segments/along", np.int64(0))], "segments/count")
    w.node("Sub", ["segments/count", one], "segments/number")
    w.node("Div", ["segments/number", size], "segments/share")
    w.node("Floor", ["segments/share"], "segments/of")
    end = w.constant("segments/end", np.array([np.iinfo(np.int64).max], np.int64))
    along = w.constant("segments/frames", np.array([0], np.int64))
    step = w.constant("segments/step", np.array([segment], np.int64))
    w.node("Slice", ["segments/of", first, end, along, step], "segments/names")
    w.node("Unsqueeze", ["segments/of", w.constant("segments/last", np.array([1], np.int64))], "segments/of/column")
    w.node("Equal", ["segments/of/column", "segments/names"], "segments/lies")
    w.node("Cast", ["segments/lies"], "segments/lies/real", to=TensorProto.FLOAT)
    w.node("ReduceSum", ["segments/lies/real", first], "segments/sizes", keepdims=1)
    w.node("Div", ["segments/lies/real", "segments/sizes"], "segments/own")
    w.node("Shape", ["segments/of"], "segments/all/int")
    w.node("Cast", ["segments/all/int"], "segments/all", to=TensorProto.FLOAT)
    w.node("Div", [one, "segments/all"], "segments/each")
    w.node("Add", ["segments/own", "segments/each"], "segments/means")
    w.node("Transpose", ["segments/lies/real"], "segments/within", perm=[1, 0])


def _reads(w: Writer, name: str, reads: Reads, parts: list[str]) -> str:
    whole = parts[0] if len(parts) == 1 else w.node("Concat", parts, f"{name}/whole", axis=1)
    scale = w.constant(f"{name}.reads.weight", reads.weight.detach().numpy().reshape(-1, 1, 1))
    offset = w.constant(f"{name}.reads.bias", reads.bias.detach().numpy().reshape(-1, 1, 1))
    w.node("Mul", [whole, scale], f"{name}.reads/scaled")
    return w.rounded(f"{name}.reads", "Add", [f"{name}.reads/scaled", offset], relu=True)


def _layer(w: Writer, name: str, layer: DenseLayer, parts: list[str]) -> str:
    inner = w.convolution(f"{name}.squeeze", layer.squeeze, _reads(w, name, layer.reads, parts), relu=True)
    local = w.convolution(f"{name}.local", layer.local, inner, relu=False)
    w.node("MatMul", [inner, "segments/means"], f"{name}.mask/means")
    squeezed = w.convolution(f"{name}.mask.squeeze", layer.mask.squeeze, f"{name}.mask/means", relu=True)
    excited = w.convolution(f"{name}.mask.excite", layer.mask.excite, squeezed, relu=False)
    w.node("Sigmoid", [excited], f"{name}.mask/segments")
    w.node("MatMul", [f"{name}.mask/segments", "segments/within"], f"{name}.mask")
    return w.node("Mul", [local, f"{name}.mask"], name)
