#!/bin/sh
# Does the shipped model compute the same embeddings on ARM, and on x86 processors without VNNI?
#
#   benchmarks/qemu_aarch64.sh [MODEL] [FOLDER]
#
# Runs ten of the bundled clips (two of each voice and more, synthetic) through MODEL on this machine,
# under an emulated aarch64 (cortex-a76: dot product), and under an emulated x86-64 without VNNI
# (Haswell: AVX2), and prints the cosines. FOLDER (default ./qemu) receives what is missing: Debian's
# qemu-user, an aarch64 Python with its libraries, and the aarch64 wheels of numpy and onnxruntime; it
# is kept for the next run. Needs apt-get, dpkg-deb, pip and the network the first time. About 10 minutes.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
model=${1:-"$here/../emoinv_edge/models/base.onnx"}
folder=${2:-qemu}
python=${PYTHON:-python3}
mkdir -p "$folder" && folder=$(cd "$folder" && pwd)

if [ ! -d "$folder/site" ]; then
    mkdir -p "$folder/debs" "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" "$folder/wheels"
    arm="-o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists=$folder/apt/lists \
        -o Dir::Cache=$folder/apt/cache -o Dir::State::status=/dev/null"
    (
        cd "$folder/debs"
        apt-get download qemu-user libcapstone4 liburing2
        # shellcheck disable=SC2086
        apt-get $arm update
        # shellcheck disable=SC2086
        apt-get $arm download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 \
            libgcc-s1 zlib1g libexpat1 libffi8 libbz2-1.0 liblzma5 libssl3 libuuid1 libcrypt1 libgomp1
    )
    for deb in "$folder"/debs/*_amd64.deb; do dpkg-deb -x "$deb" "$folder/host"; done
    for deb in "$folder"/debs/*_arm64.deb; do dpkg-deb -x "$deb" "$folder/root"; done
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 -d "$folder/wheels" \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
        numpy onnxruntime==1.27.0  # 1.32.0 stops with a segmentation fault under qemu 7.2
    mkdir -p "$folder/part"
    for wheel in "$folder"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$folder/part"; done
    mv "$folder/part" "$folder/site"
fi

"$python" - "$here/.." "$folder/clips.npz" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, sys.argv[1])
from emoinv_edge.audio import read_audio

clips = Path(sys.argv[1]) / "emoinv_edge" / "demo" / "clips"
voices = [sorted(p for p in voice.rglob("*") if p.is_file()) for voice in sorted(clips.iterdir()) if voice.is_dir()]
chosen = [clip for rank in range(10) for voice in voices for clip in voice[rank : rank + 1]][:10]
np.savez(sys.argv[2], **{f"{c.parent.name}-{c.stem}": read_audio(c)[0][:32000] for c in chosen})
PYTHON

export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
"$python" "$here/qemu_embed.py" "$model" "$folder/clips.npz" "$folder/native.npz"
export LD_LIBRARY_PATH="$folder/host/usr/lib/x86_64-linux-gnu"
PYTHONPATH="$folder/site" "$folder/host/usr/bin/qemu-aarch64" -cpu cortex-a76 -L "$folder/root" \
    "$folder/root/usr/bin/python3.11" "$here/qemu_embed.py" "$model" "$folder/clips.npz" "$folder/aarch64.npz"
"$folder/host/usr/bin/qemu-x86_64" -cpu Haswell "$(command -v "$python")" \
    "$here/qemu_embed.py" "$model" "$folder/clips.npz" "$folder/haswell.npz"

"$python" - "$folder" <<'PYTHON'
import sys

import numpy as np

native = np.load(f"{sys.argv[1]}/native.npz")
worst = 1.0
for label in ("aarch64", "haswell"):
    other = np.load(f"{sys.argv[1]}/{label}.npz")
    cosines = [float(native[name] @ other[name]) for name in native.files]
    print(f"{label}: cosine to this machine mean {np.mean(cosines):.6f}, lowest {min(cosines):.6f}, {len(cosines)} clips")
    worst = min(worst, *cosines) if label == "aarch64" else worst
sys.exit(worst < 0.999)
PYTHON
