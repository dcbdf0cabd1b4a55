"""The graph that takes a waveform: equal to the two-step path, and usable from another language."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from emoinv_edge.encoder import Encoder
from emoinv_edge.features import log_mel, mean_normalise
from emoinv_edge.session import open_session
from emoinv_edge.spec import EncoderSpec
from export.chain import write_model
from export.frontend import add_frontend, analysis_matrix
from export.graph import encoder_graph
from tests.builders import synthesise
from train.model import EncoderShape, ResidualEncoder

SPEC = EncoderSpec(name="tiny", embedding_dim=16)
SHAPE = EncoderShape(blocks=(1, 1), widths=(4, 8), strides=((1, 1), (2, 2)), embedding_dim=16)

NODE_SCRIPT = """\
const fs = require("fs");
const ort = require(process.argv[2]);
(async () => {
  const samples = new Float32Array(new Uint8Array(fs.readFileSync(process.argv[4])).buffer);
  const session = await ort.InferenceSession.create(process.argv[3]);
  const waveform = new ort.Tensor("float32", samples, [1, samples.length]);
  const { embedding } = await session.run({ waveform });
  const norm = Math.sqrt(embedding.data.reduce((sum, x) => sum + x * x, 0));
  console.log(JSON.stringify(Array.from(embedding.data, (x) => x / norm)));
})();
"""


@pytest.fixture(scope="module")
def flavours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    torch.manual_seed(0)
    graph = encoder_graph(ResidualEncoder(SHAPE), SPEC)
    folder = tmp_path_factory.mktemp("flavours")
    two_step, one_step = folder / "features.onnx", folder / "waveform.onnx"
    write_model(two_step, graph, {"emoinv.spec": SPEC.to_json()})
    write_model(one_step, add_frontend(graph, SPEC), {"emoinv.spec": SPEC.to_json()})
    return two_step, one_step


@pytest.mark.parametrize("samples", [400, 559, 560, 16000, 47999])
@pytest.mark.parametrize("window", ["hamming", "povey"])
def test_the_graph_computes_the_features_of_log_mel(samples: int, window: str) -> None:
    spec = EncoderSpec(name="tiny", window=window, mean_normalisation=False)
    value = onnx.helper.make_tensor_value_info
    same = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["features"], ["embedding"])],
            "same",
            [value("features", onnx.TensorProto.FLOAT, ["batch", "frames", 80])],
            [value("embedding", onnx.TensorProto.FLOAT, ["batch", "frames", 80])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
        ir_version=8,
    )
    waveform = synthesise(3.0, 1)[:samples]
    (got,) = open_session(add_frontend(same, spec).SerializeToString()).run(None, {"waveform": waveform[np.newaxis]})
    expected = log_mel(waveform, spec)
    assert got.shape == (1, *expected.shape)
    assert np.abs(got[0] - expected).max() < 5e-3  # a few 1e-4 but where a filter is nearly empty


def test_the_analysis_matrix_ignores_a_constant() -> None:
    assert np.abs(analysis_matrix(SPEC).astype(np.float64).sum(axis=1)).max() < 1.0  # of 32768 at full scale


@pytest.mark.parametrize("seconds", [0.2, 1.0, 3.0])
def test_both_flavours_agree(seconds: float, flavours: tuple[Path, Path]) -> None:
    two_step, one_step = (Encoder(path) for path in flavours)
    for seed, level in ((0, 1.0), (1, 0.01)):
        waveform = synthesise(seconds, seed, 110.0 + 60.0 * seed) * np.float32(level)
        distance = 1.0 - float(two_step.embed(waveform, 16000) @ one_step.embed(waveform, 16000))
        assert distance < 1e-3


def test_a_batch_gives_what_its_items_give(flavours: tuple[Path, Path]) -> None:
    session = open_session(flavours[1].read_bytes())
    waveforms = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 8000)).astype(np.float32)
    together = session.run(None, {"waveform": waveforms})[0]
    alone = np.concatenate([session.run(None, {"waveform": w[np.newaxis]})[0] for w in waveforms])
    assert np.allclose(together, alone, atol=1e-4)


def test_mean_normalisation_is_in_the_graph_when_the_spec_asks(flavours: tuple[Path, Path]) -> None:
    session = open_session(flavours[1].read_bytes())
    waveform = np.random.default_rng(1).uniform(-0.5, 0.5, 16000).astype(np.float32)
    loud, soft = (session.run(None, {"waveform": (waveform * gain)[np.newaxis]})[0] for gain in (1.0, 0.125))
    assert np.allclose(loud, soft, atol=1e-3)
    assert np.abs(mean_normalise(log_mel(waveform, SPEC)).mean(axis=0)).max() < 1e-5


def onnxruntime_node() -> str | None:
    """Where onnxruntime-node lies: $EMOINV_NODE_MODULES, or a node_modules beside the project's root or above."""
    named = os.environ.get("EMOINV_NODE_MODULES")
    roots = [Path(named)] if named else [p / "node_modules" for p in Path(__file__).resolve().parents]
    return next((str(root / "onnxruntime-node") for root in roots if (root / "onnxruntime-node").is_dir()), None)


def test_javascript_gives_the_same_embedding(flavours: tuple[Path, Path], tmp_path: Path) -> None:
    node, package = shutil.which("node"), onnxruntime_node()
    if node is None:
        pytest.skip("Node is not installed")
    if package is None:
        pytest.skip("onnxruntime-node is not installed: npm install onnxruntime-node, or set EMOINV_NODE_MODULES")
    waveform = synthesise(2.0, 3)
    script, raw = tmp_path / "embed.js", tmp_path / "waveform.f32"
    script.write_text(NODE_SCRIPT, encoding="utf-8")
    raw.write_bytes(waveform.astype("<f4").tobytes())
    done = subprocess.run(
        [node, str(script), package, str(flavours[1]), str(raw)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    embedding = np.array(json.loads(done.stdout), np.float32)
    assert float(embedding @ Encoder(flavours[0]).embed(waveform, 16000)) > 0.999
