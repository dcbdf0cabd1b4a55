"""The residual encoder: its shape, its arithmetic, its checkpoints, and the published weights' layout."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx.helper
import pytest
import torch
from onnx import numpy_helper

from tests.training import TINY_SHAPE, TINY_SPEC, tiny_encoder
from train.compress import cut, kept_channels
from train.model import (
    BASE,
    EncoderShape,
    ResidualEncoder,
    embed_waveforms,
    load_checkpoint,
    load_public_weights,
    save_checkpoint,
)


def features(batch=2, frames=60, seed=0):
    return torch.randn(batch, frames, 80, generator=torch.Generator().manual_seed(seed))


def test_base_has_the_published_size():
    model = ResidualEncoder(BASE)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(6.6e6, rel=0.02)
    assert BASE.macs(298) == pytest.approx(6.9e9, rel=0.03)


def test_macs_are_those_of_the_layers_that_run():
    for shape in (TINY_SHAPE, EncoderShape((2, 1), (4, 8), ((1, 2), (2, 1)), (1, 2), 40, 8)):
        model, counted = ResidualEncoder(shape), []

        def count(layer, inputs, output, counted=counted):
            counted.append(layer.weight[0].numel() * output[0].numel())

        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.register_forward_hook(count)
        model(torch.randn(1, 57, shape.num_mel_bins))
        assert shape.macs(57) == sum(counted)


def test_embedding_is_mean_and_deviation_over_time_through_the_linear_layer():
    model, x = tiny_encoder(), features()
    with torch.no_grad():
        frames = model.frames(x)
        deviation = torch.sqrt(frames.var(dim=-1, unbiased=True) + 1e-7)
        statistics = torch.cat((frames.mean(dim=-1).flatten(1), deviation.flatten(1)), 1)
        expected = model.linear(statistics) - model.mean_vector
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_a_batch_equals_its_rows_and_any_length_is_taken():
    model = tiny_encoder()
    with torch.no_grad():
        x = features(3, 71)
        assert torch.allclose(model(x), torch.cat([model(row[None]) for row in x]), atol=1e-5)
        for frames in (1, 2, 7, 8, 9):
            assert torch.isfinite(model(features(1, frames))).all()


def test_stages_can_be_run_apart():
    model, x = tiny_encoder(), features()
    with torch.no_grad():
        low = model.frames(x, 2)
        assert torch.allclose(model.pool(model.stages[2](low)), model(x), atol=1e-5)


def test_a_shape_with_unequal_lists_is_refused():
    with pytest.raises(ValueError, match="one entry a stage"):
        EncoderShape(blocks=(1, 2), widths=(4,), strides=((1, 1),))


def test_shape_survives_the_round_trip_through_plain_values():
    assert EncoderShape.from_dict(dataclasses.asdict(TINY_SHAPE)) == TINY_SHAPE
    as_json = {k: [list(x) if isinstance(x, tuple) else x for x in v] if isinstance(v, tuple) else v
               for k, v in dataclasses.asdict(TINY_SHAPE).items()}  # fmt: skip
    assert EncoderShape.from_dict(as_json) == TINY_SHAPE


def test_a_checkpoint_gives_back_the_encoder_its_spec_and_what_was_saved_with_it(tmp_path):
    model = tiny_encoder(3)
    save_checkpoint(tmp_path / "a.pt", model, TINY_SPEC, step=7, provenance={"corpora": ["x"]})
    loaded, spec, extra = load_checkpoint(tmp_path / "a.pt")
    assert spec == TINY_SPEC and extra == {"step": 7, "provenance": {"corpora": ["x"]}}
    with torch.no_grad():
        assert torch.equal(loaded.eval()(features()), model(features()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pt", tiny_encoder(1), TINY_SPEC, step=1)

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "a.pt", tiny_encoder(2), TINY_SPEC, step=2)
    assert load_checkpoint(tmp_path / "a.pt")[2]["step"] == 1


def test_a_file_of_other_weights_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "foreign.pt")


def published(path, model, shortcut_first=True, drop_last=False):
    """Write the encoder's weights as the published graph lays them out: convolutions in order, Gemm, mean vector."""
    nodes, weights = [], []

    def convolution(layer, name):
        weights.append(numpy_helper.from_array(layer.weight.detach().numpy(), f"{name}.w"))
        weights.append(numpy_helper.from_array(layer.bias.detach().numpy(), f"{name}.b"))
        nodes.append(onnx.helper.make_node("Conv", ["x", f"{name}.w", f"{name}.b"], [f"{name}.y"]))

    convolution(model.stem, "stem")
    for s, stage in enumerate(model.stages):
        for b, block in enumerate(stage):
            layers = [("conv1", block.conv1), ("conv2", block.conv2)]
            if isinstance(block.shortcut, torch.nn.Conv2d):
                layers.insert(1 if shortcut_first else 2, ("shortcut", block.shortcut))
            for name, layer in layers:
                convolution(layer, f"{s}.{b}.{name}")
    if drop_last:
        nodes.pop()
    weights.append(numpy_helper.from_array(model.linear.weight.detach().numpy(), "linear.w"))
    weights.append(numpy_helper.from_array(model.linear.bias.detach().numpy(), "linear.b"))
    nodes.append(onnx.helper.make_node("Gemm", ["x", "linear.w", "linear.b"], ["pooled"]))
    weights.append(numpy_helper.from_array(model.mean_vector.numpy(), "mean"))
    nodes.append(onnx.helper.make_node("Sub", ["pooled", "mean"], ["last_hidden_state"]))
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], weights)), path)


@pytest.mark.parametrize("shortcut_first", [True, False])
def test_published_weights_land_in_their_layers_whatever_the_order_of_the_shortcut(tmp_path, shortcut_first):
    torch.manual_seed(0)
    model = ResidualEncoder(BASE)
    model.mean_vector.normal_()
    published(tmp_path / "public.onnx", model, shortcut_first)
    loaded = load_public_weights(tmp_path / "public.onnx")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_weights_of_another_network_are_refused(tmp_path):
    published(tmp_path / "public.onnx", ResidualEncoder(BASE), drop_last=True)
    with pytest.raises(ValueError, match="expected 36 convolutions of ResNet34-LM, got 35"):
        load_public_weights(tmp_path / "public.onnx")


# Embedding many clips


def clip(samples, seed):
    return (0.1 * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)


def test_clips_of_mixed_length_come_back_in_their_order():
    model = tiny_encoder()
    lengths = [8000, 3000, 16000, 8003, 6400, 8000]
    clips = [clip(n, seed) for seed, n in enumerate(lengths)]
    together = embed_waveforms(model, TINY_SPEC, lambda i: clips[i], lengths)
    alone = [embed_waveforms(model, TINY_SPEC, lambda _, c=c: c, [len(c)])[0] for c in clips]
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert (np.sum(together * np.array(alone), axis=1) > 0.999).all()


def test_progress_of_embedding_reaches_the_number_of_clips():
    done = []
    clips = [clip(4000, 0), clip(9000, 1), clip(4000, 2)]
    embed_waveforms(
        tiny_encoder(), TINY_SPEC, lambda i: clips[i], [4000, 9000, 4000], lambda *progress: done.append(progress)
    )
    assert done[-1] == (3, 3) and done == sorted(done)


# Cutting


def test_a_cut_encoder_keeps_the_weights_of_the_blocks_that_stay():
    shape = EncoderShape((2, 3, 2), (4, 6, 8), ((1, 1), (2, 2), (2, 2)), (2, 2), 80, 16)
    torch.manual_seed(0)
    large = ResidualEncoder(shape)
    small = cut(large, dataclasses.replace(shape, blocks=(1, 2, 1)))
    assert torch.equal(small.stages[0][0].conv1.weight, large.stages[0][0].conv1.weight)
    assert torch.equal(small.stages[1][1].conv1.weight, large.stages[1][2].conv1.weight)
    assert [len(stage) for stage in small.stages] == [1, 2, 1]


def test_cutting_nothing_off_changes_nothing():
    model = tiny_encoder()
    with torch.no_grad():
        assert torch.allclose(cut(model, TINY_SHAPE)(features()), model(features()), atol=1e-5)


def test_a_thinner_encoder_keeps_the_channels_that_the_next_layers_weigh_most():
    torch.manual_seed(0)
    large = tiny_encoder()
    with torch.no_grad():
        large.stages[1][0].conv1.weight[:, [1, 3]] *= 0.01
    thin = dataclasses.replace(TINY_SHAPE, widths=(14, 16, 32))
    kept = [0, 2, *range(4, 16)]
    assert [found.tolist() for found in kept_channels(large, thin.widths)] == [kept, list(range(16)), list(range(32))]
    small = cut(large, thin)
    assert small.shape == thin
    assert torch.equal(small.stem.weight, large.stem.weight[kept])
    assert torch.equal(small.stages[1][0].shortcut.weight, large.stages[1][0].shortcut.weight[:, kept])
    assert small(features()).shape == (2, 16) and torch.isfinite(small(features())).all()


def test_an_encoder_cannot_be_cut_to_more_blocks_or_channels():
    for changes in ({"blocks": (1, 2, 1)}, {"widths": (16, 16, 48)}):
        with pytest.raises(ValueError, match=r"expected at most \(1, 1, 1\) blocks of \(16, 16, 32\) channels"):
            cut(tiny_encoder(), dataclasses.replace(TINY_SHAPE, **changes))
