"""An encoder of several branches: its cosine is the branches' weighed mean, in torch and in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emoinv_edge.model_graph import check_graph
from emoinv_edge.session import open_session
from emoinv_edge.spec import EncoderSpec
from export.gates import compare_with_torch
from export.graph import encoder_graph, tensors, weighted
from export.quantise import choose_ranges, observe, round_weights
from export.windows import add_windows, geometry
from train.__main__ import main
from train.branches import BranchedEncoder, BranchesShape
from train.model import EncoderShape, ResidualEncoder, load_checkpoint, save_checkpoint
from train.tdnn import DenseTdnn, TdnnShape

SPEC = EncoderSpec(name="large", embedding_dim=22)
RESIDUAL = EncoderShape(blocks=(1, 1), widths=(8, 16), strides=((2, 2), (2, 4)), embedding_dim=16)
TDNN = TdnnShape(layers=(2, 2), dilations=(1, 2), growth=4, inner=8, first=8, image=4, segment=20, embedding_dim=6)
SHARES = (0.6, 0.4)


@pytest.fixture(scope="module")
def model() -> BranchedEncoder:
    torch.manual_seed(4)
    return BranchedEncoder.of([ResidualEncoder(RESIDUAL), DenseTdnn(TDNN)], SHARES)


@pytest.fixture(scope="module")
def graph(model: BranchedEncoder) -> onnx.ModelProto:
    return encoder_graph(model, SPEC)


def speech(count: int, frames: int, seed: int = 0) -> torch.Tensor:
    features = 3.0 * np.random.default_rng(seed).standard_normal((count, frames, 80)).astype(np.float32)
    return torch.from_numpy(features - features.mean(axis=1, keepdims=True))


def test_the_cosine_is_the_mean_of_the_branches_cosines_and_the_norm_the_first_branchs(model: BranchedEncoder) -> None:
    features = speech(2, 70)
    with torch.no_grad():
        whole = model(features)
        parts = [branch(features) for branch in model.branches]
    cosines = [torch.cosine_similarity(part[:1], part[1:])[0] for part in parts]
    expected = sum(share * cosine for share, cosine in zip(SHARES, cosines, strict=True))
    assert whole.shape == (2, 22)
    assert torch.cosine_similarity(whole[:1], whole[1:])[0] == pytest.approx(float(expected), abs=1e-5)
    assert torch.allclose(whole.norm(dim=1), parts[0].norm(dim=1), rtol=1e-5)


def test_the_float_graph_equals_torch_at_five_lengths(model: BranchedEncoder, graph: onnx.ModelProto) -> None:
    assert compare_with_torch(model, SPEC, graph).passed
    check_graph(graph.SerializeToString())


# 40 frames fill one segment of 20 after the stride of 2, 41 begin another.
@pytest.mark.parametrize("frames", [2, 3, 39, 40, 41, 42, 80, 81, 133])
def test_the_graph_takes_awkward_lengths_and_batches(
    frames: int, model: BranchedEncoder, graph: onnx.ModelProto
) -> None:
    features = speech(3, frames, frames)
    with torch.no_grad():
        expected = model(features).numpy()
    (got,) = open_session(graph.SerializeToString()).run(None, {"features": features.numpy()})
    assert np.abs(got - expected).max() < 1e-4


def test_a_tdnn_alone_has_a_graph_too(model: BranchedEncoder) -> None:
    alone = model.branches[1]
    spec = EncoderSpec(name="tdnn", embedding_dim=6)
    assert compare_with_torch(alone, spec, encoder_graph(alone, spec)).passed


def test_the_int8_graph_is_smaller_agrees_and_holds_every_layer(model: BranchedEncoder, graph: onnx.ModelProto) -> None:
    features = speech(6, 120).numpy()
    observed = observe(model, SPEC, features)
    assert set(observed) == set(tensors(model))
    weights = round_weights(model)
    assert set(weighted(model)) - set(weights) == {"branch1.stem", "branch2.stem"}
    rounded = encoder_graph(model, SPEC, choose_ranges(observed), weights)
    session, exact = open_session(rounded.SerializeToString()), open_session(graph.SerializeToString())
    for clip in features:
        ours, theirs = (each.run(None, {"features": clip[np.newaxis]})[0][0] for each in (session, exact))
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.98
    assert any(node.op_type == "QuantizeLinear" for node in rounded.graph.node)


@pytest.mark.parametrize("frames", [10, 151, 152, 153, 289, 296, 297, 304, 305, 500])
def test_windows_of_all_branches_are_as_many_and_stand_side_by_side(graph: onnx.ModelProto, frames: int) -> None:
    stride, window, hop = geometry(graph)
    assert stride == 8 and window == 152 and hop == 48
    features = {"features": speech(1, frames, frames).numpy()}
    (plain,) = open_session(graph.SerializeToString()).run(None, features)
    both, windows = open_session(add_windows(graph).SerializeToString()).run(None, features)
    assert np.array_equal(plain, both)
    # The branch whose frames are finer sees sooner that the last window does not fit.
    assert windows.shape == (max(0, (-(-frames // 2) - window // 2) // (hop // 2)) + 1, 22)
    assert np.isfinite(windows).all()


def test_a_checkpoint_gives_back_all_branches(model: BranchedEncoder, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "large.pt", model, SPEC)
    loaded, spec, _ = load_checkpoint(tmp_path / "large.pt")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(speech(1, 50)), model(speech(1, 50)))
    assert isinstance(loaded, BranchedEncoder) and loaded.shape == model.shape and spec == SPEC


@given(shares=st.lists(st.floats(-1.0, 2.0), min_size=0, max_size=3).filter(lambda s: len(s) != 2 or min(s) <= 0.0))
def test_shares_that_are_no_shares_are_refused(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="share"):
        BranchesShape((RESIDUAL, TDNN), tuple(shares))


def test_branches_must_hear_the_same_features() -> None:
    with pytest.raises(ValueError, match="same features"):
        BranchesShape((RESIDUAL, TdnnShape(num_mel_bins=40)), SHARES)


def test_join_writes_the_checkpoints_as_one_and_credits_all(tmp_path: Path, model: BranchedEncoder) -> None:
    files = [tmp_path / "first.pt", tmp_path / "second.pt"]
    made_of = [{"corpora": [{"name": name, "licence": "CC0"}], "teachers": []} for name in ("one", "two")]
    for path, branch, provenance in zip(files, model.branches, made_of, strict=True):
        spec = EncoderSpec(name=path.stem, embedding_dim=branch.shape.embedding_dim)
        save_checkpoint(path, branch, spec, provenance=provenance)
    command = ["join", *map(str, files), "--shares", "0.6", "0.4", "--name", "large", "-o", str(tmp_path / "l.pt")]
    assert main(command) == 0
    loaded, spec, extra = load_checkpoint(tmp_path / "l.pt")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(speech(1, 50)), model(speech(1, 50)))
    assert spec == SPEC and [each["name"] for each in extra["provenance"]["corpora"]] == ["one", "two"]


def test_join_refuses_branches_of_other_front_ends(
    tmp_path: Path, model: BranchedEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / "first.pt"), str(tmp_path / "second.pt")]
    for path, branch, window in zip(files, model.branches, ("hamming", "povey"), strict=True):
        spec = EncoderSpec(name="branch", embedding_dim=branch.shape.embedding_dim, window=window)
        save_checkpoint(Path(path), branch, spec)
    assert main(["join", *files, "--shares", "0.5", "0.5", "-o", str(tmp_path / "l.pt")]) == 1
    assert "expected the front end of" in capsys.readouterr().err
    assert not (tmp_path / "l.pt").exists()
