"""Prepared audio in tar files of WebDataset's layout: written by webdataset, read by number through wids.

Each shard holds about a gigabyte of clips, ``NNNNNNNNN.wav``, in an order that was shuffled once, so that speech which
no cache holds is read shard by shard and still mixed. ``shards.json`` is an index as wids writes it.

Why wids: every batch of training is made from its number alone, so that a run goes on with the very batch it would
have had, whichever machine or worker makes it. Streams (webdataset's own, Lhotse Shar) give the next clip, not the
clip asked for: to go on in them is to read everything again. Why WAV: a processor decodes FLAC many times more slowly,
and to feed an accelerator needs the processors for other things; disks are cheaper.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from .manifest import SAMPLE_RATE

__all__ = ["INDEX", "Shards", "write_shards"]

INDEX = "shards.json"
LARGEST_BYTES = 1e9
MOST_CLIPS = 20000
# Shards that a process holds open: what is random over more of them looks for its clip in a tar file each time.
MOST_OPEN = 128


@contextlib.contextmanager
def write_shards(out: Path, largest_bytes: float = LARGEST_BYTES) -> Iterator[Callable[[NDArray[np.int16]], int]]:
    """Write shards, whose index appears when the block ends; shards of an earlier run go.

    Yields
    ------
    callable
        Appends one clip (int16 at 16 kHz) and returns its number.
    """
    import webdataset

    out.mkdir(parents=True, exist_ok=True)
    for old in (out / INDEX, *out.glob("shard-*.tar")):
        old.unlink(missing_ok=True)
    count, of_earlier = 0, 0
    written: list[dict[str, Any]] = []

    def closed(name: str) -> None:
        nonlocal of_earlier
        path = Path(name)
        written.append({"url": path.name, "nsamples": count - of_earlier, "filesize": path.stat().st_size})
        of_earlier = count

    pattern = str(out).replace("%", "%%") + os.sep + "shard-%06d.tar"
    with webdataset.ShardWriter(
        pattern, maxcount=MOST_CLIPS, maxsize=largest_bytes, post=closed, verbose=0, encoder=False, mtime=0
    ) as writer:

        def add(samples: NDArray[np.int16]) -> int:
            nonlocal count
            content = io.BytesIO()
            soundfile.write(content, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
            writer.write({"__key__": f"{count:09d}", "wav": content.getvalue()})
            count += 1
            return count - 1

        yield add
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": out.name, "shardlist": written}
    (out / f"{INDEX}.part").write_text(json.dumps(index, indent=1), encoding="utf-8")
    os.replace(out / f"{INDEX}.part", out / INDEX)


class Shards:
    """The clips in a folder's shards, by number. A shard that is missing or has another size is skipped.

    Attributes
    ----------
    skipped : tuple of str
        Name of each skipped shard, and why.

    Raises
    ------
    ValueError
        If the index is none, or no shard is whole.
    """

    def __init__(self, folder: Path) -> None:
        try:
            listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["shardlist"]
            self._paths = [folder / each["url"] for each in listed]
            self._ends = np.cumsum([int(each["nsamples"]) for each in listed], dtype=np.int64)
            sizes = [int(each["filesize"]) for each in listed]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / INDEX}: no index of shards ({error!r}); prepare again") from None
        self._wrong = {n: why for n, path in enumerate(self._paths) if (why := _what_is_wrong(path, sizes[n]))}
        if len(self._wrong) == len(self._paths):
            raise ValueError(f"{folder}: none of {len(self._paths)} shards is whole; copy them again, or prepare again")
        self.skipped = tuple(f"{self._paths[n].name} {why}" for n, why in self._wrong.items())
        self._opened: Any = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lost(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these clips lie in a skipped shard."""
        return np.isin(np.searchsorted(self._ends, numbers, side="right"), list(self._wrong))

    def __call__(self, number: int, samples: int) -> NDArray[np.int16]:
        """The samples of clip `number`, which is so long."""
        from wids.wids import IndexedTarSamples
        from wids.wids_lru import LRUCache

        shard = int(np.searchsorted(self._ends, number, side="right"))
        path = self._paths[shard]
        if shard in self._wrong:
            raise ValueError(f"{path} {self._wrong[shard]}; copy it again, or prepare again")
        if self._opened is None:
            self._opened = LRUCache(MOST_OPEN, release_handler=lambda _, opened: opened.close())
        if shard not in self._opened:
            with open(path, "rb") as stream:
                self._opened[shard] = IndexedTarSamples(path=str(path), stream=stream)
        first = int(self._ends[shard - 1]) if shard else 0
        try:
            found, rate = soundfile.read(self._opened[shard][number - first][".wav"], dtype="int16")
        except (soundfile.LibsndfileError, IndexError, KeyError) as error:
            raise ValueError(
                f"{path}: clip {number} cannot be read ({error}); remove the shard, or copy it again"
            ) from None
        if len(found) != samples or rate != SAMPLE_RATE:
            raise ValueError(f"{path}: clip {number} has {len(found)} samples, expected {samples}; prepare again")
        return np.asarray(found, np.int16)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # another process opens the shards for itself


def _what_is_wrong(path: Path, size: int) -> str:
    """Why a shard cannot be used, or nothing."""
    try:
        found = path.stat().st_size
    except OSError:
        return "is missing"
    return "" if found == size else f"is torn: {found} bytes, expected {size}"
