"""What the tests of training share: tiny prepared sets of synthetic voices, and tiny encoders."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from emoinv_edge.spec import EncoderSpec
from tests.builders import synthesise
from train.model import EncoderShape, ResidualEncoder
from train.prepare import PreparedSet, write_set

# Tiny layers gain nothing from threads, which on a busy machine wait for each other for most of the time.
torch.set_num_threads(1)

TINY_SPEC = EncoderSpec(name="tiny", embedding_dim=16)
# Channels in sixteens: torch 2.13.0's oneDNN writes past its buffer when it computes the gradient of a strided 1x1
# convolution's kernel for 4 or 6 channels without AVX-512, and aborts for 8 channels on an AMD EPYC with AVX512-BF16.
TINY_SHAPE = EncoderShape((1, 1, 1), (16, 16, 32), ((1, 1), (2, 2), (2, 2)), (2, 2), 80, 16)


def tiny_encoder(seed: int = 0) -> ResidualEncoder:
    """A random residual encoder of three stages and 16 dimensions."""
    torch.manual_seed(seed)
    return ResidualEncoder(TINY_SHAPE).eval()


def prepared(
    folder: Path,
    corpus: str = "toy",
    speakers: int = 5,
    emotions: tuple[str, ...] = ("neutral", "angry"),
    takes: int = 2,
    seconds: float = 0.9,
    genders: tuple[str, ...] = ("male", "female"),
) -> PreparedSet:
    """A prepared set of synthetic voices, written straight to disk."""
    with write_set(folder) as add:
        for number in range(speakers):
            for number_of_emotion, emotion in enumerate(emotions):
                for take in range(takes):
                    pitch = 90.0 + 25.0 * number + 6.0 * number_of_emotion
                    wave = synthesise(seconds, 97 * number + 7 * number_of_emotion + take, pitch)
                    labels = (corpus, f"{corpus}-{number}", genders[number % len(genders)], emotion, "")
                    add(labels, np.rint(wave * 32767).astype(np.int16), f"{number}-{emotion}-{take}.wav")
    return PreparedSet(folder)


def random_embeddings(clips: PreparedSet, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Unit rows, near to each other for one speaker."""
    rng = np.random.default_rng(seed)
    centres = {clip.speaker: rng.normal(size=dim) for clip in clips.clips}
    rows = np.array([centres[clip.speaker] + 0.5 * rng.normal(size=dim) for clip in clips.clips])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def write_morphs(folder: Path, clips: PreparedSet) -> None:
    """A morphed set in which each clip has one "morph": itself, half as loud."""
    folder.mkdir(parents=True)
    start = 0
    with open(folder / "audio.i16", "wb") as audio, open(folder / "manifest.csv", "w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(("corpus", "index", "start", "samples"))
        for index, clip in enumerate(clips.clips):
            samples = np.rint(clips.waveform(index) * 16384).astype("<i2")
            audio.write(samples.tobytes())
            rows.writerow((clip.corpus, index, start, len(samples)))
            start += len(samples)
