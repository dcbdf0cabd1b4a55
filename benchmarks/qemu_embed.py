"""Embeddings of some waveforms by one model file, on whatever processor runs this; see qemu_aarch64.sh.

``python qemu_embed.py MODEL WAVEFORMS.npz OUT.npz`` needs numpy and onnxruntime alone.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from emoinv_edge.encoder import Encoder
from emoinv_edge.golden import run_golden


def main() -> int:
    """Embed every waveform of the archive; print one line a clip."""
    model, waveforms, out = sys.argv[1:4]
    encoder = Encoder(model)
    embeddings = {}
    with np.load(waveforms) as clips:
        for name in clips.files:
            start = time.perf_counter()
            embeddings[name] = encoder.embed(clips[name], encoder.spec.sample_rate).vector
            seconds = time.perf_counter() - start
            speech_s = len(clips[name]) / encoder.spec.sample_rate
            print(f"{platform.machine()}  {name}  {speech_s:.2f} s of speech, {seconds:.2f} s")
    golden = run_golden(encoder)
    if golden:
        print(f"{platform.machine()}  golden test: lowest cosine {min(result.cosine for result in golden):.6f}")
    np.savez(out, **embeddings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
