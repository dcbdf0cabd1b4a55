"""Int8: ranges, weights, equalisation, and a graph that ONNX Runtime runs in integers from end to end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from emoinv_edge.spec import EncoderSpec
from export.graph import Affine, encoder_graph, layers
from export.quantise import (
    RANGES,
    Observed,
    Scheme,
    choose_ranges,
    correct_weights,
    equalise,
    observe,
    round_weights,
)
from export.session import open_session
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
    session = open_session(graph, optimise)
    return np.concatenate([session.run(None, {"features": clip[np.newaxis]})[0] for clip in features])


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def int8_graph(model: ResidualEncoder, features: NDArray[np.float32], scheme: Scheme) -> onnx.ModelProto:
    activations = choose_ranges(observe(model, SPEC, features), scheme)
    return encoder_graph(model, SPEC, activations, correct_weights(model, features, activations, scheme))


@pytest.mark.parametrize("ranges", RANGES)
def test_int8_agrees_with_float(ranges: str, model: ResidualEncoder, features: NDArray[np.float32]) -> None:
    exact = run(encoder_graph(model, SPEC), features)
    ours = run(int8_graph(model, features, Scheme(ranges=ranges)), features)
    assert cosines(exact, ours).min() > 0.98
    assert not np.array_equal(exact, ours)


@pytest.mark.parametrize("scheme", [Scheme(activations="int8"), Scheme(weight_bits=7), Scheme(correction="bias")])
def test_the_other_schemes_agree_with_float(
    scheme: Scheme, model: ResidualEncoder, features: NDArray[np.float32]
) -> None:
    exact = run(encoder_graph(model, SPEC), features)
    assert cosines(exact, run(int8_graph(model, features, scheme), features)).min() > 0.98


def test_convolutions_and_sums_run_in_integers_with_no_conversion_between(
    model: ResidualEncoder, features: NDArray[np.float32], tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    graph = int8_graph(model, features, Scheme())
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
    graph = int8_graph(model, features, Scheme())
    assert cosines(run(graph, features), run(graph, features, optimise=False)).min() > 0.999


def test_the_linear_layer_keeps_16_bits_of_its_input(model: ResidualEncoder, features: NDArray[np.float32]) -> None:
    ranges = choose_ranges(observe(model, SPEC, features), Scheme())
    weights = round_weights(model, Scheme())
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
    graph = int8_graph(model, features, Scheme())
    guarded = open_session(graph, session__x64quantprecision="1").run(None, {"features": features[:1]})[0]
    assert cosines(guarded, run(graph, features[:1])).min() > 0.999


@given(
    low=st.floats(-100.0, 100.0), high=st.floats(-100.0, 100.0), dtype=st.sampled_from(["uint8", "int8"])
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_zero_is_exact_and_the_range_is_covered(low: float, high: float, dtype: str) -> None:
    seen = Observed(min(low, high), max(low, high), np.array([[low, high]], np.float32))
    affine = choose_ranges({"x": seen}, Scheme(activations=dtype, ranges="minmax"))["x"]
    limits = np.iinfo(dtype)
    assert limits.min <= affine.zero_point <= limits.max
    least = (limits.min - affine.zero_point) * affine.scale
    most = (limits.max - affine.zero_point) * affine.scale
    assert least <= min(low, high, 0.0) + 0.51 * affine.scale
    assert most >= max(low, high, 0.0) - 0.51 * affine.scale


def test_a_tensor_after_a_relu_has_no_room_below_zero(model: ResidualEncoder, features: NDArray[np.float32]) -> None:
    for dtype, least in (("uint8", 0), ("int8", -128)):
        ranges = choose_ranges(observe(model, SPEC, features), Scheme(activations=dtype))
        assert all(ranges[layer.name].zero_point == least for layer in layers(model) if layer.relu)


@pytest.mark.parametrize("ranges", ["percentile", "entropy", "mse", "balanced"])
def test_a_lone_outlier_shortens_the_range(ranges: str) -> None:
    values = np.abs(np.random.default_rng(0).standard_normal((50, 2048))).astype(np.float32)
    values[0, 0] = 60.0
    seen = Observed(0.0, 60.0, values)
    found = choose_ranges({"x": seen}, Scheme(ranges=ranges))["x"]
    assert found.scale < 0.9 * choose_ranges({"x": seen}, Scheme(ranges="minmax"))["x"].scale


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_stay_in_their_bits_and_near_their_values(bits: int, model: ResidualEncoder) -> None:
    scheme = Scheme(weight_bits=bits)
    rounded = round_weights(model, scheme)
    assert "stem" not in rounded and "linear" in rounded
    for layer in layers(model):
        if layer.name in rounded:
            assert layer.convolution is not None
            weights, exact = rounded[layer.name], layer.convolution.weight.detach().numpy()
            assert np.abs(weights.values.astype(int)).max() <= scheme.largest_weight == 2 ** (bits - 1) - 1
            again = weights.values * weights.scale.reshape(-1, 1, 1, 1)
            assert np.square(again - exact).mean() < (0.02 if bits == 7 else 0.01) ** 2 * np.square(exact).mean() * 4


def test_bias_correction_keeps_the_mean_of_a_layer(model: ResidualEncoder, features: NDArray[np.float32]) -> None:
    """With coarse activations the mean of the last sum drifts; with corrected biases it drifts less."""
    ranges = choose_ranges(observe(model, SPEC, features), Scheme(ranges="minmax"))
    del ranges["statistics"]
    coarse = {name: Affine(4.0 * a.scale, a.zero_point // 4, "uint8") for name, a in ranges.items()}

    def drift(correction: str) -> float:
        weights = correct_weights(model, features, coarse, Scheme(correction=correction))
        means = []
        for graph in (encoder_graph(model, SPEC), encoder_graph(model, SPEC, coarse, weights)):
            name = "stage2.block1.conv2"
            graph.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
            session = open_session(graph, optimise=False)
            outputs = [session.run([name], {"features": clip[np.newaxis]})[0] for clip in features]
            means.append(np.concatenate(outputs).mean(axis=(0, 2, 3)))
        return float(np.abs(means[0] - means[1]).mean())

    assert drift("bias") < 0.2 * drift("none")


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


@pytest.mark.parametrize(
    "wrong", [{"activations": "int4"}, {"weight_bits": 6}, {"ranges": "guess"}, {"correction": "all"}]
)
def test_an_unknown_scheme_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected .* one of"):
        Scheme(**wrong)  # type: ignore[arg-type]
