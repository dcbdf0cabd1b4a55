"""Memory and speed of reading shards at VoxCeleb's size: ``python -m benchmarks.shards``.

A set is simulated: a manifest of so many clips of so many speakers, and shards that are all one file of short clips.
Batches of pretraining are read from it as a worker process does, over two windows of the shuffled order. Printed are
the memory that is the process's own (RssAnon, on Linux; what is mapped is the cache's), and crops a second of one
worker.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from emoinv_edge.spec import EncoderSpec
from train.manifest import COLUMNS
from train.prepare import PreparedSet
from train.pretrain import SpeakerBatches
from train.shards import INDEX, write_shards

SECONDS = 2.5


def own_megabytes() -> float:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no RssAnon; this needs Linux")


def simulate(folder: Path, clips: int, speakers: int, per_shard: int) -> None:
    """Write a set whose shards are links to one."""
    rng = np.random.default_rng(0)
    samples = round(SECONDS * 16000)
    with write_shards(folder) as add:
        for _ in range(per_shard):
            add((3000 * rng.normal(size=samples)).astype(np.int16))
    index = json.loads((folder / INDEX).read_text())
    (first,) = index["shardlist"]
    for number in range(1, clips // per_shard):
        name = f"shard-{number:06d}.tar"
        (folder / name).symlink_to(first["url"])
        index["shardlist"].append(first | {"url": name})
    (folder / INDEX).write_text(json.dumps(index))
    places = rng.permutation(clips)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for number in range(clips):
            speaker = f"id{number * speakers // clips:05d}"
            path = f"{speaker}/{number % 20:011d}/{number:05d}.wav"
            rows.writerow(("voxceleb", f"voxceleb-{speaker}", "", "", "", places[number], samples, path))


def main() -> int:
    """Simulate, read, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=1_200_000)
    parser.add_argument("--speakers", type=int, default=7000)
    parser.add_argument("--per-shard", type=int, default=4000)
    parser.add_argument(
        "--batches", type=int, default=400, help="of 128 crops of 2 s, from the first two windows (400)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "voxceleb"
        simulate(folder, arguments.clips, arguments.speakers, arguments.per_shard)
        before, begun = own_megabytes(), time.monotonic()
        clips = PreparedSet(folder)
        after = own_megabytes()
        batches = SpeakerBatches([clips], EncoderSpec(name="base"), 128, 2.0, 0)
        print(f"{batches.clips} clips, {len(batches.speakers)} speakers, {time.monotonic() - begun:.0f} s to open")
        print(f"own memory: {before:.0f} MB before, {after:.0f} MB with the manifest, {own_megabytes():.0f} MB ready")
        # Half from the end of the first window, half from the second: where other shards are opened.
        first = max(0, 30_000 // 128 - arguments.batches // 2)
        begun, spent = time.monotonic(), time.process_time()
        for number in range(arguments.batches):
            batch = batches[first + number]
            assert batch["features"].shape == (128, 198, 80)
            if (number + 1) % (arguments.batches // 8) == 0:
                crops = 128 * (number + 1)
                wall, processor = crops / (time.monotonic() - begun), crops / (time.process_time() - spent)
                print(
                    f"{crops} crops: {own_megabytes():.0f} MB, {wall:.0f} crops/s, {processor:.0f} by its own time",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
