"""Post-training quantisation: ranges of activations, int8 weights, and what makes up for rounding.

Weights are symmetric, 8 bits, one scale per output channel, of least square error; activations are
unsigned, one scale per tensor, their ranges found on the float graph. After a ReLU the whole range lies above
zero. `equalise` makes channels of more equal size beforehand; `correct_weights` gives each layer's bias
what rounding took from the mean of its output.

References
----------
Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emoinv_edge.session import open_session
from emoinv_edge.spec import EncoderSpec
from train.branches import BranchedEncoder
from train.model import ResidualEncoder, SpeakerNet
from train.tdnn import DenseTdnn

from .graph import FEATURES, Affine, QuantisedWeights, branches, encoder_graph, layers, stages, tensors, weighted
from .tdnn_graph import even_channels

__all__ = [
    "CORRECTIONS",
    "Observed",
    "Scheme",
    "choose_ranges",
    "correct_weights",
    "equalise",
    "even_out",
    "observe",
    "round_weights",
]

CORRECTIONS = ("none", "bias")
STATISTICS = "statistics"
LOCAL = ".local"  # what a `DenseTdnn`'s layers add, before its mask
IN_FLOAT = ("stem",)  # layers whose weights stay in float (see `export.graph`); their outputs are rounded all the same
LARGEST_WEIGHT = 127
SAMPLES_PER_CLIP = 2048


@dataclasses.dataclass(frozen=True, slots=True)
class Scheme:
    """What is done about rounding besides choosing ranges and steps well.

    Parameters
    ----------
    correction : {"none", "bias"}
        "bias" gives each layer's bias what rounding took from the mean of its output.
    equalisation : float
        Strength of `equalise`, 0 to 1; 0 leaves it out.
    """

    correction: str = "none"
    equalisation: float = 0.0

    def __post_init__(self) -> None:
        if self.correction not in CORRECTIONS:
            raise ValueError(f"expected correction to be one of {CORRECTIONS}, got {self.correction!r}")

    def describe(self) -> str:
        """The scheme in words."""
        return f"correction {self.correction}, equalisation {self.equalisation:g}, in float: {', '.join(IN_FLOAT)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Observed:
    """What one tensor was seen to hold: its extremes and a sample of its values, (clips, values)."""

    low: float
    high: float
    sample: NDArray[np.float32]


def observe(
    model: SpeakerNet,
    spec: EncoderSpec,
    features: NDArray[np.float32],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Observed]:
    """Run the float graph on `features` (clips, frames, bins) and note every tensor that may be rounded."""
    names = tensors(model)
    proto = encoder_graph(model, spec)
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    session = open_session(proto.SerializeToString())
    rng = np.random.default_rng(0)
    low, high = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    samples: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for i, clip in enumerate(features):
        for name, values in zip(names, session.run(names, {FEATURES: clip[np.newaxis]}), strict=True):
            flat = values.ravel()
            low[name], high[name] = min(low[name], float(flat.min())), max(high[name], float(flat.max()))
            samples[name].append(flat[rng.integers(0, len(flat), SAMPLES_PER_CLIP)])
        progress(i + 1, len(features))
    return {name: Observed(low[name], high[name], np.stack(samples[name])) for name in names}


def even_out(model: SpeakerNet, spec: EncoderSpec, features: NDArray[np.float32]) -> SpeakerNet:
    """The same function, where it costs nothing, with channels of equal size: what a `DenseTdnn`'s layers add.

    Each layer reads every channel by a scale of its own, so that theirs is free. Others stay as they are.
    """
    if isinstance(model, BranchedEncoder):
        return BranchedEncoder.of([even_out(each, spec, features) for _, each in branches(model)], model.shape.shares)
    if not isinstance(model, DenseTdnn):
        return model
    return even_channels(
        model, _peaks(model, spec, features, [name for name in tensors(model) if name.endswith(LOCAL)])
    )


def _peaks(
    model: SpeakerNet,
    spec: EncoderSpec,
    features: NDArray[np.float32],
    names: Sequence[str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, NDArray[np.float64]]:
    """The largest magnitude in each channel of the float graph's tensors, the mean over clips."""
    proto = encoder_graph(model, dataclasses.replace(spec, embedding_dim=model.shape.embedding_dim))
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    session = open_session(proto.SerializeToString())
    largest: dict[str, NDArray[np.float64]] = {}
    for i, clip in enumerate(features):
        for name, values in zip(names, session.run(list(names), {FEATURES: clip[np.newaxis]}), strict=True):
            peaks = np.abs(values[0]).max(axis=(1, 2)).astype(np.float64)
            largest[name] = largest.get(name, np.zeros(len(peaks))) + peaks / len(features)
        progress(i + 1, len(features))
    return largest


@torch.no_grad()
def equalise(
    model: ResidualEncoder,
    spec: EncoderSpec,
    features: NDArray[np.float32],
    strength: float = 0.5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ResidualEncoder:
    """The same function with channels of more equal size, so that one scale for all of them loses less.

    A channel may be divided by any positive number before a ReLU if what reads it multiplies: between
    the two convolutions of a block, and along a whole stage, whose blocks add to one stream. Mean and
    standard deviation scale too, so that the last stage's numbers go into the linear layer.

    Parameters
    ----------
    strength : float
        0 leaves the model as it is, 1 makes all channels' maxima equal at the cost of the weights' precision.
    """
    largest = _peaks(model, spec, features, [layer.name for layer in layers(model)], progress)

    def divisor(names: Sequence[str]) -> Tensor:
        peaks = np.max([largest[name] / largest[name].max() for name in names], axis=0)
        factor = np.clip(peaks, 1e-3, None) ** strength
        return torch.from_numpy(np.clip(factor / np.exp(np.log(factor).mean()), 0.1, 10.0)).float()

    equal = ResidualEncoder(model.shape)
    equal.load_state_dict(model.state_dict())
    stream = [divisor(["stem", *(f"stage1.block{b}" for b in range(1, model.shape.blocks[0] + 1))])]
    if isinstance(stages(model)[0][0].shortcut, nn.Conv2d):
        stream = [divisor(["stem"]), divisor([f"stage1.block{b}" for b in range(1, model.shape.blocks[0] + 1)])]
    stream += [
        divisor([f"stage{s}.block{b}" for b in range(1, blocks + 1)])
        for s, blocks in enumerate(model.shape.blocks[1:], 2)
    ]
    _divide_outputs(equal.stem, stream[0])
    offset = len(stream) - len(equal.stages)
    for s, stage in enumerate(stages(equal)):
        for b, block in enumerate(stage):
            before = stream[s + offset] if b else stream[max(0, s + offset - 1)]
            after = stream[s + offset]
            inner = divisor([f"stage{s + 1}.block{b + 1}.conv1"])
            _multiply_inputs(block.conv1, before)
            _divide_outputs(block.conv1, inner)
            _multiply_inputs(block.conv2, inner)
            _divide_outputs(block.conv2, after)
            if isinstance(block.shortcut, nn.Conv2d):
                _multiply_inputs(block.shortcut, before)
                _divide_outputs(block.shortcut, after)
    last = stream[-1]
    rows = equal.linear.weight.shape[1] // (2 * len(last))
    equal.linear.weight.mul_(last.repeat_interleave(rows).repeat(2)[None, :])
    return equal.eval()


def _divide_outputs(convolution: nn.Conv2d, divisor: Tensor) -> None:
    convolution.weight.div_(divisor.reshape(-1, 1, 1, 1))
    assert convolution.bias is not None
    convolution.bias.div_(divisor)


def _multiply_inputs(convolution: nn.Conv2d, factor: Tensor) -> None:
    convolution.weight.mul_(factor.reshape(1, -1, 1, 1))


def choose_ranges(observed: Mapping[str, Observed]) -> dict[str, Affine]:
    """One `Affine` for every observed tensor; the pooling statistics have room beyond their extremes."""
    return {
        name: _affine(1.5 * seen.low, 1.5 * seen.high) if name.endswith(STATISTICS) else _affine(*_balanced(seen))
        for name, seen in observed.items()
    }


def _affine(low: float, high: float) -> Affine:
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, 1e-6) / 255.0))
    return Affine(scale, int(np.clip(round(-low / scale), 0, 255)))


def _least_error(seen: Observed) -> tuple[float, float]:
    """The share of the extremes that makes the error of rounding and clipping least.

    The error is relative to each clip's own variance, so that a loud clip which a short range would cut
    counts as much as the many that a long range would round coarsely.
    """
    shares = np.linspace(0.3, 1.0, 29)
    variance = seen.sample.var(axis=1) + 1e-12
    errors = [
        float(np.mean(np.square(error).mean(axis=1) / variance))
        for s in shares
        for error in [_rounded(seen.sample, _affine(s * seen.low, s * seen.high)) - seen.sample]
    ]
    share = float(shares[int(np.argmin(errors))])
    return share * seen.low, share * seen.high


def _balanced(seen: Observed) -> tuple[float, float]:
    """Between the range of least error, which serves most clips, and the extremes, which spare the few loud ones."""
    low, high = _least_error(seen)
    return -float(np.sqrt(low * seen.low)), float(np.sqrt(high * seen.high))


def _rounded(values: NDArray[np.float32], affine: Affine) -> NDArray[np.float32]:
    steps = np.clip(np.rint(values / np.float32(affine.scale)) + affine.zero_point, 0, 255)
    return np.asarray((steps - affine.zero_point) * np.float32(affine.scale), np.float32)


def _rounded_tensor(values: Tensor, affine: Affine | None) -> Tensor:
    if affine is None:
        return values
    steps = torch.clamp(torch.round(values / affine.scale) + affine.zero_point, 0, 255)
    return (steps - affine.zero_point) * affine.scale


def _nearest(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integer weights and the scale of each row of a (rows, inputs) matrix, of least square error."""
    largest = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST_WEIGHT
    best_error = torch.full_like(largest, torch.inf)
    best_scale, best_steps = largest, torch.zeros_like(weight)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7):
        scale = largest * share
        steps = torch.clamp(torch.round(weight / scale), -LARGEST_WEIGHT, LARGEST_WEIGHT)
        error = (steps * scale - weight).square().sum(dim=1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_steps = torch.where(better, steps, best_steps)
    return best_steps, best_scale


def _pack(steps: Tensor, scale: Tensor, bias: Tensor | None, like: Tensor) -> QuantisedWeights:
    return QuantisedWeights(
        steps.reshape(like.shape).to(torch.int8).numpy().copy(),
        scale.flatten().to(torch.float32).numpy().copy(),
        (torch.zeros(len(steps)) if bias is None else bias.detach()).to(torch.float32).numpy().copy(),
    )


def round_weights(model: SpeakerNet, in_float: Sequence[str] = IN_FLOAT) -> dict[str, QuantisedWeights]:
    """The weights of every layer but `in_float` rounded to the nearest step, biases as they are."""
    with torch.no_grad():
        return {
            name: _pack(*_nearest(module.weight.flatten(1)), module.bias, module.weight)
            for name, module in weighted(model).items()
            if not name.endswith(tuple(in_float))
        }


@torch.no_grad()
def correct_weights(
    model: ResidualEncoder,
    features: NDArray[np.float32],
    activations: Mapping[str, Affine],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, QuantisedWeights]:
    """Rounded weights, with biases that keep the mean of every layer's output.

    Parameters
    ----------
    features : ndarray, shape (clips, frames, bins)
        A few dozen clips.
    activations : mapping
        From `choose_ranges`.

    Returns
    -------
    dict of layer name to QuantisedWeights
    """
    weights = round_weights(model)
    steps = layers(model)
    images = [torch.from_numpy(clip.T.copy())[None, None] for clip in features]
    exact: dict[str, list[Tensor]] = {FEATURES: images}
    rounded: dict[str, list[Tensor]] = {FEATURES: images}
    for k, layer in enumerate(steps):
        inputs = layer.inputs
        if layer.convolution is None:
            true = [a + b for a, b in zip(exact[inputs[0]], exact[inputs[1]], strict=True)]
            ours = [a + b for a, b in zip(rounded[inputs[0]], rounded[inputs[1]], strict=True)]
        else:
            convolution = layer.convolution
            if layer.name in weights:
                fitted = _fit(convolution, exact[inputs[0]], rounded[inputs[0]])
                weights[layer.name] = _pack(*fitted, convolution.weight)
            true = [_convolve(convolution, x, None) for x in exact[inputs[0]]]
            ours = [_convolve(convolution, x, weights.get(layer.name)) for x in rounded[inputs[0]]]
        affine = activations.get(layer.name)
        exact[layer.name] = [torch.relu(x) if layer.relu else x for x in true]
        rounded[layer.name] = [_rounded_tensor(torch.relu(x) if layer.relu else x, affine) for x in ours]
        needed = {name for later in steps[k + 1 :] for name in later.inputs}
        for values in (exact, rounded):
            for name in [name for name in values if name not in needed]:
                del values[name]
        progress(k + 1, len(steps))
    return weights


def _convolve(convolution: nn.Conv2d, x: Tensor, weights: QuantisedWeights | None) -> Tensor:
    if weights is None:
        return nn.functional.conv2d(x, convolution.weight, convolution.bias, convolution.stride, convolution.padding)
    weight = torch.from_numpy(weights.values.astype(np.float32) * weights.scale.reshape(-1, 1, 1, 1))
    return nn.functional.conv2d(x, weight, torch.from_numpy(weights.bias), convolution.stride, convolution.padding)


def _patches(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """What each output position sees, (inputs, positions)."""
    padding = tuple(map(int, convolution.padding))
    return nn.functional.unfold(x, convolution.kernel_size, padding=padding, stride=convolution.stride)[0]


def _fit(convolution: nn.Conv2d, exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Integer weights (outputs, inputs), their scales (outputs, 1) and the bias of one convolution."""
    weight, bias = convolution.weight.flatten(1), convolution.bias
    assert bias is not None
    mean_exact, mean_rounded, count = torch.zeros(weight.shape[1]), torch.zeros(weight.shape[1]), 0
    for x, y in zip(exact, rounded, strict=True):
        seen_exact, seen_rounded = _patches(convolution, x), _patches(convolution, y)
        mean_exact += seen_exact.sum(dim=1)
        mean_rounded += seen_rounded.sum(dim=1)
        count += seen_exact.shape[1]
    steps, scale = _nearest(weight)
    return steps, scale, bias + (weight @ mean_exact - (steps * scale) @ mean_rounded) / count
