"""Int8: ranges, weights, equalisation, and a graph that ONNX Runtime runs in integers from end to end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.session import import_onnxruntime, open_session
from emoinv_edge.spec import EncoderSpec
from export.chain import quantise
from export.graph import Affine, QuantisedWeights, encoder_graph, layers
from export.quantise import (
    LARGEST_WEIGHT,
    Observed,
    Scheme,
    choose_ranges,
    correct_weights,
    equalise,
    observe,
    round_weights,
)
from export.speech import Portion
from train.model import EncoderShape, ResidualEncoder

SPEC = EncoderSpec(name="tiny", num_mel_bins=16, embedding_dim=16)
SHAPE = EncoderShape(
    blocks=(2, 1), widths=(8, 16), strides=((1, 1), (2, 2)), num_mel_bins=16, embedding_dim=16
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> ResidualEncoder:
    torch.manual_seed(1)
    return ResidualEncoder(SHAPE).eval()


@pytest.fixture(scope="module")
def features() -> NDArray[np.float32]:
    rng = np.random.default_rng(2)
    smooth = rng.standard_normal((12, 70, 16)).cumsum(axis=1)
    return (smooth - smooth.mean(axis=1, keepdims=True)).astype(np.float32)


def run(graph: onnx.ModelProto, features: NDArray[np.float32], optimise: bool = True) -> NDArray[np.float32]:
    session = open_session(graph.SerializeToString(), optimise=optimise)
    return np.concatenate([session.run(None, {"features": clip[np.newaxis]})[0] for clip in features])


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def int8_graph(model: ResidualEncoder, features: NDArray[np.float32], scheme: Scheme | None = None) -> onnx.ModelProto:
    labels = ("",) * len(features)
    return quantise(model, SPEC, Portion(features, labels, labels, labels), scheme or Scheme())


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(correction="bias"), Scheme(equalisation=0.5)])
def test_int8_agrees_with_float(scheme: Scheme, model: ResidualEncoder, features: NDArray[np.float32]) -> None:
    exact = run(encoder_graph(model, SPEC), features)
    ours = run(int8_graph(model, features, scheme), features)
    assert cosines(exact, ours).min() > 0.98
    assert not np.array_equal(exact, ours)


def test_convolutions_and_sums_run_in_integers_with_no_conversion_between(
    model: ResidualEncoder, features: NDArray[np.float32], tmp_path: Path
) -> None:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    graph = int8_graph(model, features)
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    kinds = Counter(node.op_type for node in nodes)
    convolutions = sum(layer.convolution is not None for layer in layers(model))
    assert kinds["QLinearConv"] == convolutions - 1  # the first one stays in float
    assert kinds["QLinearAdd"] == len(layers(model)) - convolutions
    assert kinds["MatMulIntegerToFloat"] == 1
    assert kinds["Relu"] == 0
    produced = {name: node.op_type for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type == "QLinearConv":
            assert produced[node.input[0]] in {"QLinearConv", "QLinearAdd", "QuantizeLinear", "Transpose"}


def test_the_optimised_graph_computes_what_the_written_one_says(
    model: ResidualEncoder, features: NDArray[np.float32]
) -> None:
    graph = int8_graph(model, features)
    assert cosines(run(graph, features), run(graph, features, optimise=False)).min() > 0.999


def test_the_linear_layer_keeps_16_bits_of_its_input(model: ResidualEncoder, features: NDArray[np.float32]) -> None:
    ranges = choose_ranges(observe(model, SPEC, features))
    weights = round_weights(model)
    in_float = {"linear": weights["linear"]}
    both = {"statistics": ranges["statistics"]}
    exact = run(encoder_graph(model, SPEC, {}, in_float), features)  # without a range the weights stay in float
    ours = run(encoder_graph(model, SPEC, both, in_float), features)
    assert (
        1.0 - cosines(exact, ours).min() < 3e-4
    )  # the weights' own rounding; 8 bits of input would add ten times that


def test_the_graph_loads_with_the_guard_against_saturation(
    model: ResidualEncoder, features: NDArray[np.float32]
) -> None:
    graph = int8_graph(model, features)
    guarded = open_session(graph.SerializeToString(), config={"session.x64quantprecision": "1"})
    (embeddings,) = guarded.run(None, {"features": features[:1]})
    assert cosines(embeddings, run(graph, features[:1])).min() > 0.999


@given(low=st.floats(-100.0, 100.0), high=st.floats(-100.0, 100.0))
@settings(max_examples=200, deadline=None)
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    seen = Observed(low, high, np.tile(np.linspace(low, high, 64, dtype=np.float32), (2, 1)))
    affine = choose_ranges({"x": seen})["x"]
    assert 0 <= affine.zero_point <= 255
    # At least half of the way from the shortest range that is tried (0.3 of the extremes) to all of it.
    assert -affine.zero_point * affine.scale <= 0.5 * min(low, 0.0) + 0.51 * affine.scale
    assert (255 - affine.zero_point) * affine.scale >= 0.5 * max(high, 0.0) - 0.51 * affine.scale


def test_a_tensor_after_a_relu_has_no_room_below_zero(model: ResidualEncoder, features: NDArray[np.float32]) -> None:
    ranges = choose_ranges(observe(model, SPEC, features))
    assert all(ranges[layer.name].zero_point == 0 for layer in layers(model) if layer.relu)


def test_a_lone_outlier_shortens_the_range() -> None:
    values = np.abs(np.random.default_rng(0).standard_normal((50, 2048))).astype(np.float32)
    values[0, 0] = 60.0
    found = choose_ranges({"x": Observed(0.0, 60.0, values)})["x"]
    assert found.scale < 0.9 * 60.0 / 255.0


def test_weights_stay_in_their_bits_and_near_their_values(model: ResidualEncoder) -> None:
    rounded = round_weights(model)
    assert "stem" not in rounded and "linear" in rounded
    for layer in layers(model):
        if layer.name in rounded:
            assert layer.convolution is not None
            weights, exact = rounded[layer.name], layer.convolution.weight.detach().numpy()
            assert np.abs(weights.values.astype(int)).max() <= LARGEST_WEIGHT == 127
            again = weights.values * weights.scale.reshape(-1, 1, 1, 1)
            assert np.square(again - exact).mean() < 0.02**2 * np.square(exact).mean()


def test_bias_correction_keeps_the_mean_of_a_layer(model: ResidualEncoder, features: NDArray[np.float32]) -> None:
    """With coarse activations the mean of the last sum drifts; with corrected biases it drifts less."""
    ranges = choose_ranges(observe(model, SPEC, features))
    del ranges["statistics"]
    coarse = {name: Affine(4.0 * a.scale, a.zero_point // 4) for name, a in ranges.items()}

    def drift(weights: dict[str, QuantisedWeights]) -> float:
        means = []
        for graph in (encoder_graph(model, SPEC), encoder_graph(model, SPEC, coarse, weights)):
            name = "stage2.block1.conv2"
            graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
            session = open_session(graph.SerializeToString(), optimise=False)
            outputs = [session.run([name], {"features": clip[np.newaxis]})[0] for clip in features]
            means.append(np.concatenate(outputs).mean(axis=(0, 2, 3)))
        return float(np.abs(means[0] - means[1]).mean())

    assert drift(correct_weights(model, features, coarse)) < 0.2 * drift(round_weights(model))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_equalising_leaves_the_function_and_evens_the_channels(strength: float, features: NDArray[np.float32]) -> None:
    torch.manual_seed(3)
    uneven = ResidualEncoder(SHAPE).eval()
    with torch.no_grad():
        uneven.stages[0][0].conv1.weight[0] *= 30.0
        uneven.stages[1][0].conv2.weight[3] *= 20.0
    even = equalise(uneven, SPEC, features, strength)
    x = torch.from_numpy(features)
    with torch.no_grad():
        assert torch.allclose(uneven(x), even(x), rtol=1e-3, atol=1e-4)
        before, after = (torch.relu(m.stages[0][0].conv1(m.frames(x, 0))).amax(dim=(0, 2, 3)) for m in (uneven, even))
    assert after.max() / after.median() < before.max() / before.median() / 2
    assert even is not uneven


def test_an_unknown_correction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected correction to be one of"):
        Scheme("all")
