"""The densely connected TDNN: it computes what the published layers compute, at any length, and learns as it is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from emoinv_edge.spec import EncoderSpec
from train import tdnn
from train.model import load_checkpoint, load_start, save_checkpoint
from train.tdnn import DenseTdnn, TdnnShape, load_public_tdnn

TINY = TdnnShape(
    layers=(2, 1), dilations=(1, 2), growth=4, inner=8, first=8, image=4, segment=5, num_mel_bins=24, embedding_dim=6
)


def published(shape: TdnnShape, seed: int) -> dict[str, Tensor]:
    """Weights as 3D-Speaker publishes them: convolutions over one axis, batch norms on their own."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return 1.5 * torch.randn(*size, generator=generator) / max(1, int(np.prod(size[1:]))) ** 0.5

    found: dict[str, Tensor] = {}

    def norm(name: str, channels: int, affine: bool = True) -> None:
        found[f"{name}.running_mean"] = 0.3 * random(channels)
        found[f"{name}.running_var"] = 0.01 + 3.0 * torch.rand(channels, generator=generator)
        found[f"{name}.num_batches_tracked"] = torch.tensor(1)
        if affine:
            found[f"{name}.weight"] = random(channels)
            found[f"{name}.bias"] = random(channels)

    def convolution(name: str, *size: int) -> None:
        found[f"{name}.weight"] = random(*size)

    image = shape.image
    convolution("head.conv1", image, 1, 3, 3)
    norm("head.bn1", image)
    for block in ("1.0", "1.1", "2.0", "2.1"):
        for number in (1, 2):
            convolution(f"head.layer{block}.conv{number}", image, image, 3, 3)
            norm(f"head.layer{block}.bn{number}", image)
        if block.endswith(".0"):
            convolution(f"head.layer{block}.shortcut.0", image, image, 1, 1)
            norm(f"head.layer{block}.shortcut.1", image)
    convolution("head.conv2", image, image, 3, 3)
    norm("head.bn2", image)
    convolution("xvector.tdnn.linear", shape.first, image * shape.num_mel_bins // 8, 5)
    norm("xvector.tdnn.nonlinear.batchnorm", shape.first)
    channels = shape.first
    for b, layers in enumerate(shape.layers, 1):
        for i in range(1, layers + 1):
            name = f"xvector.block{b}.tdnnd{i}"
            norm(f"{name}.nonlinear1.batchnorm", channels)
            convolution(f"{name}.linear1", shape.inner, channels, 1)
            norm(f"{name}.nonlinear2.batchnorm", shape.inner)
            convolution(f"{name}.cam_layer.linear_local", shape.growth, shape.inner, 3)
            convolution(f"{name}.cam_layer.linear1", shape.inner // 2, shape.inner, 1)
            convolution(f"{name}.cam_layer.linear2", shape.growth, shape.inner // 2, 1)
            for part, size in (("linear1", shape.inner // 2), ("linear2", shape.growth)):
                found[f"{name}.cam_layer.{part}.bias"] = random(size)
            channels += shape.growth
        norm(f"xvector.transit{b}.nonlinear.batchnorm", channels)
        convolution(f"xvector.transit{b}.linear", channels // 2, channels, 1)
        channels //= 2
    norm("xvector.out_nonlinear.batchnorm", channels)
    convolution("xvector.dense.linear", shape.embedding_dim, 2 * channels, 1)
    norm("xvector.dense.nonlinear.batchnorm", shape.embedding_dim, affine=False)
    return found


def reference(weights: dict[str, Tensor], shape: TdnnShape, features: Tensor) -> Tensor:
    """The published network by its definition: nothing folded, the masks' segments one by one."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return functional.batch_norm(
            x, mean, variance, weights.get(f"{name}.weight"), weights.get(f"{name}.bias"), eps=1e-5
        )

    def over_image(x: Tensor, name: str, behind: str, stride: int, padding: int = 1) -> Tensor:
        return norm(functional.conv2d(x, weights[f"{name}.weight"], None, (stride, 1), padding), behind)

    x = torch.relu(over_image(features.transpose(1, 2).unsqueeze(1), "head.conv1", "head.bn1", 1))
    for block in ("1.0", "1.1", "2.0", "2.1"):
        name, stride = f"head.layer{block}", 2 if block.endswith(".0") else 1
        inner = torch.relu(over_image(x, f"{name}.conv1", f"{name}.bn1", stride))
        inner = over_image(inner, f"{name}.conv2", f"{name}.bn2", 1)
        if stride == 2:
            x = over_image(x, f"{name}.shortcut.0", f"{name}.shortcut.1", 2, 0)
        x = torch.relu(inner + x)
    x = torch.relu(over_image(x, "head.conv2", "head.bn2", 2)).flatten(1, 2)
    x = functional.conv1d(x, weights["xvector.tdnn.linear.weight"], stride=2, padding=2)
    x = torch.relu(norm(x, "xvector.tdnn.nonlinear.batchnorm"))
    for b, (layers, dilation) in enumerate(zip(shape.layers, shape.dilations, strict=True), 1):
        for i in range(1, layers + 1):
            name = f"xvector.block{b}.tdnnd{i}"
            read = torch.relu(norm(x, f"{name}.nonlinear1.batchnorm"))
            inner = functional.conv1d(read, weights[f"{name}.linear1.weight"])
            inner = torch.relu(norm(inner, f"{name}.nonlinear2.batchnorm"))
            local = functional.conv1d(
                inner, weights[f"{name}.cam_layer.linear_local.weight"], padding=dilation, dilation=dilation
            )
            mask = torch.empty_like(local)
            for start in range(0, inner.shape[-1], shape.segment):
                segment = slice(start, start + shape.segment)
                context = inner.mean(-1, keepdim=True) + inner[..., segment].mean(-1, keepdim=True)
                for part, after in (("linear1", torch.relu), ("linear2", torch.sigmoid)):
                    layer = f"{name}.cam_layer.{part}"
                    context = after(functional.conv1d(context, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
                mask[..., segment] = context
            x = torch.cat((x, local * mask), dim=1)
        read = torch.relu(norm(x, f"xvector.transit{b}.nonlinear.batchnorm"))
        x = functional.conv1d(read, weights[f"xvector.transit{b}.linear.weight"])
    x = torch.relu(norm(x, "xvector.out_nonlinear.batchnorm"))
    pooled = torch.cat((x.mean(-1), x.std(-1)), dim=1)
    embedding = functional.linear(pooled, weights["xvector.dense.linear.weight"][..., 0])
    return norm(embedding, "xvector.dense.nonlinear.batchnorm")


@pytest.fixture
def tiny_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tdnn, "CAMPPLUS", TINY)


@pytest.fixture
def public(tmp_path: Path, tiny_is_public: None) -> tuple[DenseTdnn, dict[str, Tensor]]:
    weights = published(TINY, 3)
    torch.save(weights, tmp_path / "public.pt")
    return load_public_tdnn(tmp_path / "public.pt"), weights


# 20 frames fill two segments of 5 after the stride of 2, 21 begin a third.
@pytest.mark.parametrize("frames", [3, 4, 9, 10, 11, 19, 20, 21, 40, 57])
def test_the_folded_network_computes_what_the_published_one_computes(
    frames: int, public: tuple[DenseTdnn, dict[str, Tensor]]
) -> None:
    model, weights = public
    features = 3.0 * torch.randn(3, frames, 24, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        got, expected = model(features), reference(weights, TINY, features)
    assert got.shape == (3, 6)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(
    layers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    dilation=st.integers(1, 3),
    segment=st.integers(1, 9),
    frames=st.integers(3, 30),
    seed=st.integers(0, 1000),
)
def test_the_folded_network_of_any_shape_computes_what_the_published_one_computes(
    tmp_path_factory: pytest.TempPathFactory, layers: list[int], dilation: int, segment: int, frames: int, seed: int
) -> None:
    shape = dataclasses.replace(
        TINY, layers=tuple(layers), dilations=(dilation,) * len(layers), segment=segment, num_mel_bins=16
    )
    weights = published(shape, seed)
    path = tmp_path_factory.mktemp("weights") / "public.pt"
    torch.save(weights, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tdnn, "CAMPPLUS", shape)
        model = load_public_tdnn(path)
    features = torch.randn(2, frames, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        got, expected = model(features), reference(weights, shape, features)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_no_layer_has_statistics_of_its_own() -> None:
    model = DenseTdnn(TINY)
    assert not list(model.buffers())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def test_every_weight_has_a_finite_gradient(public: tuple[DenseTdnn, dict[str, Tensor]]) -> None:
    model, _ = public
    model(torch.randn(2, 30, 24)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_two_frames_of_silence_have_an_embedding_and_a_gradient() -> None:
    model = DenseTdnn(TINY)
    embedding = model(torch.zeros(1, 2, 24))
    embedding.sum().backward()
    assert torch.isfinite(embedding).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_a_checkpoint_gives_back_the_network(tmp_path: Path, public: tuple[DenseTdnn, dict[str, Tensor]]) -> None:
    model, _ = public
    save_checkpoint(tmp_path / "a.pt", model, EncoderSpec(name="tdnn", num_mel_bins=24, embedding_dim=6), step=3)
    loaded, spec, extra = load_checkpoint(tmp_path / "a.pt")
    features = torch.randn(1, 30, 24)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(features), model(features))
    assert isinstance(loaded, DenseTdnn) and spec.name == "tdnn" and extra["step"] == 3
    with pytest.raises(ValueError, match="expected a residual encoder to start from, got DenseTdnn"):
        load_start(tmp_path / "a.pt")


@pytest.mark.parametrize("change", ["missing", "foreign", "shape"])
def test_other_weights_are_refused(change: str, tmp_path: Path, tiny_is_public: None) -> None:
    weights = published(TINY, 3)
    if change == "missing":
        del weights["head.conv2.weight"]
    elif change == "foreign":
        weights["xvector.block9.weight"] = torch.zeros(3)
    else:
        weights["xvector.dense.linear.weight"] = torch.zeros(6, 5, 1)
    torch.save(weights, tmp_path / "public.pt")
    with pytest.raises(ValueError, match="expected the published weights of CAM"):
        load_public_tdnn(tmp_path / "public.pt")


def test_a_shape_needs_a_dilation_for_each_block() -> None:
    with pytest.raises(ValueError, match="one entry a block"):
        TdnnShape(layers=(1, 2), dilations=(1,))


def test_the_published_file_is_read_with_the_front_end_that_it_was_trained_with(
    tmp_path: Path, public: tuple[DenseTdnn, dict[str, Tensor]]
) -> None:
    loaded, spec, extra = load_checkpoint(tmp_path / "public.pt")
    assert isinstance(loaded, DenseTdnn) and extra == {}
    assert spec.window == "povey" and spec.waveform_scale == 1.0
