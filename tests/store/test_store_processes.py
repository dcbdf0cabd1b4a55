"""Several processes work on one store at once: no update is lost, nobody waits for ever.

    python tests/test_store_processes.py --processes 8 --operations 200

The pytest test runs 4 processes with 25 operations each, the full number with EMOINV_FULL_PROOFS=1.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from emoinv_edge.errors import UnknownSpeakerError
from emoinv_edge.store import ProfileStore
from tests.store.profile_samples import FULL, adapt_anyhow, memory_folder, sample_exemplar, sample_profile

SHARED = "everyone"
LIMIT = 1000  # above what all workers add, so that each of their exemplars must be there at the end


def work(path: Path, worker: int, operations: int) -> dict[str, object]:
    """Mixed operations of one process; the answer is what it did and how long the longest one took."""
    rng = random.Random(worker)
    store = ProfileStore(path, timeout_s=60.0)
    own = f"worker {worker}"
    mine: tuple[int, ...] | None = None
    added: list[int] = []
    counts: collections.Counter[str] = collections.Counter()
    longest = 0.0
    for turn in range(operations):
        weights = {"adapt": 3, "verify": 4, "get": 4, "put": 2, "adapt own": 2, "remove": 1, "list": 1, "rotate": 0.2}
        (operation,) = rng.choices(list(weights), list(weights.values()))
        number = worker * 10_000 + turn
        start = time.monotonic()
        if operation == "adapt":
            adapt_anyhow(store, SHARED, sample_exemplar(number, audio=str(number).encode()), limit=LIMIT)
            added.append(number)
        elif operation == "verify":
            store.note_verified(SHARED, "accept")
        elif operation == "get":
            assert set(added) <= seeds_near(store)
        elif operation == "put":
            mine = (number, number + 1)
            store.put(sample_profile(own, mine))
        elif operation == "rotate":
            store.rotate(store.own_key_file())
        elif operation == "list":
            assert not [info.problem for info in store.list() if info.problem]
        elif mine is not None:
            if operation == "adapt own":
                mine = (*mine, number)
                store.adapt(store.get(own), sample_exemplar(number), limit=LIMIT)
            else:
                mine = None
                store.remove(own)
        longest = max(longest, time.monotonic() - start)
        counts[operation] += 1
        try:
            found = store.get(own)
        except UnknownSpeakerError:
            assert mine is None
        else:
            assert mine is not None and found == sample_profile(own, mine, adapted=len(mine) - 2)
    return {"added": added, "verified": counts["verify"], "longest_s": longest, "counts": counts, "mine": mine}


def seeds_near(store: ProfileStore) -> set[int]:
    """The seeds of the shared profile's exemplars: each one's number is kept in its clip."""
    return {int(exemplar.audio or b"0") for exemplar in store.get(SHARED).exemplars}


def run_workers(processes: int, operations: int) -> dict[str, object]:
    with memory_folder() as folder:
        path = folder / "p.db"
        ProfileStore(path).put(sample_profile(SHARED, (1,)))
        start = time.monotonic()
        workers = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", str(number), "--operations", str(operations), "--path", path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(1, processes + 1)
        ]
        answers = []
        for worker in workers:
            out, err = worker.communicate(timeout=1500)
            assert worker.returncode == 0, err
            answers.append(json.loads(out))
        seconds = time.monotonic() - start
        store = ProfileStore(path)
        added = [number for answer in answers for number in answer["added"]]
        assert seeds_near(store) == {0, *added}
        assert len(store.get(SHARED).exemplars) == 1 + len(added)
        counted = sum(day["accept"] for day in store.audit(SHARED).verified.values())
        assert counted == sum(answer["verified"] for answer in answers)
        for number, answer in enumerate(answers, 1):
            name = f"worker {number}"
            assert (name in store.names()) == (answer["mine"] is not None)
            if answer["mine"] is not None:
                assert store.get(name) == sample_profile(name, tuple(answer["mine"]), adapted=len(answer["mine"]) - 2)
        assert sorted(each.name for each in folder.iterdir()) == ["p.db", "p.db.key"]
        totals: collections.Counter[str] = collections.Counter()
        for answer in answers:
            totals.update(answer["counts"])
        return {
            "processes": processes,
            "operations": sum(totals.values()),
            "of": dict(sorted(totals.items())),
            "seconds": round(seconds, 1),
            "longest wait, s": round(max(answer["longest_s"] for answer in answers), 2),
        }


def test_processes_lose_no_update_and_wait_no_longer_than_they_may() -> None:
    report = run_workers(8, 200) if FULL else run_workers(4, 25)
    print(report)
    assert report["operations"] == (1600 if FULL else 100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--operations", type=int, default=200)
    parser.add_argument("--worker", type=int)
    parser.add_argument("--path", type=Path)
    arguments = parser.parse_args()
    if arguments.worker is None:
        print(json.dumps(run_workers(arguments.processes, arguments.operations)))
    else:
        print(json.dumps(work(arguments.path, arguments.worker, arguments.operations)))
