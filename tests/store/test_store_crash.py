"""A process is killed (SIGKILL) at random moments of its work on a store; the store is intact every time.

    python tests/test_store_crash.py --rounds 500

In each round a child enrols, adapts, rolls back, rotates, imports and removes without a pause, until it is
killed. What it has reported as done must be there, complete; what it was doing must be done or not begun. The
pytest test plays 40 rounds, 500 with EMOINV_FULL_PROOFS=1.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # run as a program: in a process without threads, so that it can fork
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

import pytest

from emoinv_edge.store import Passphrase, ProfileStore
from emoinv_edge.store.portable import write_profile_file
from tests.store.profile_samples import FULL, MODEL, cheap_derive, memory_folder, sample_exemplar, sample_profile

NAMES = ("ana", "bo", "cy")
WORD = Passphrase("correct horse")
LIMIT = 6
# A model of the store: for each name how many exemplars were enrolled, and the states of all its exemplars, by
# their seeds, the newest last, as far as they can be rolled back to.
Model = dict[str, tuple[int, list[tuple[int, ...]]]]


def plan(seed: int, step: int) -> tuple[str, str, int]:
    """What a child of this seed does as its step number `step`: the operation, the name, a number."""
    rng = random.Random(f"{seed}/{step}")
    operations = ("enrol", "adapt", "adapt", "rotate", "import", "rollback", "remove", "verify")
    return rng.choice(operations), rng.choice(NAMES), rng.randrange(1 << 30)


def expected(model: Model, operation: str, name: str, number: int) -> Model:
    """The model after the operation."""
    after = dict(model)
    if operation in ("enrol", "import"):
        seeds = (number, number + 1) if operation == "enrol" else (1, 2, 3)
        after[name] = len(seeds), [seeds]
    elif name in after:
        enrolled, states = after[name]
        if operation == "adapt":
            kept = states[-1]
            if len(kept) >= LIMIT:
                kept = kept[:enrolled] + kept[len(kept) - LIMIT + 1 + enrolled :]
            after[name] = enrolled, [*states, (*kept, number)][-17:]
        elif operation == "rollback" and len(states) > 1:
            after[name] = enrolled, states[:-1]
        elif operation == "remove":
            del after[name]
    return after


def perform(store: ProfileStore, model: Model, operation: str, name: str, number: int) -> None:
    """The operation on the store itself."""
    if operation == "enrol":
        store.put(sample_profile(name, (number, number + 1)))
    elif operation == "import":
        store.import_profile(
            store.path.parent / "export.emoinv", WORD, model_fingerprint=MODEL, name=name, replace=True
        )
    elif operation == "rotate":
        if store.path.exists():
            store.rotate(store.own_key_file())
    elif name in model:
        if operation == "adapt":
            store.adapt(store.get(name), sample_exemplar(number), limit=LIMIT)
        elif operation == "rollback" and len(model[name][1]) > 1:
            store.rollback(name)
        elif operation == "remove":
            store.remove(name)
        elif operation == "verify":
            store.note_verified(name, "accept")


def child(path: Path, model: Model, seed: int, done: int) -> None:
    """Work until killed; one byte for each operation that returned."""
    store = ProfileStore(path)
    for step in range(1_000_000):
        operation, name, number = plan(seed, step)
        perform(store, model, operation, name, number)
        model = expected(model, operation, name, number)
        os.write(done, b".")


def fits(store: ProfileStore, model: Model) -> bool:
    """Whether the store holds exactly what the model expects."""
    if store.names() != sorted(model):
        return False
    return all(
        store.get(name) == sample_profile(name, states[-1], adapted=len(states[-1]) - enrolled)
        for name, (enrolled, states) in model.items()
    )


def play(rounds: int, seed: int) -> dict[str, object]:
    """Play the rounds; the answer counts them, and the operations that the kills fell into."""
    Passphrase.derive = cheap_derive
    rng = random.Random(seed)
    interrupted: collections.Counter[str] = collections.Counter()
    finished = 0
    with memory_folder() as folder:
        path = folder / "p.db"
        write_profile_file(folder / "export.emoinv", sample_profile("ana", (1, 2, 3)), WORD)
        model: Model = {}
        for turn in range(rounds):
            if turn % 25 == 24:  # from time to time the making of the store itself is interrupted
                for file in folder.glob("p.db*"):
                    file.unlink()
                model = {}
            read_end, write_end = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    child(path, model, seed + turn, write_end)
                finally:
                    os._exit(1)
            os.close(write_end)
            time.sleep(rng.uniform(0.0, 0.1) if turn % 25 != 24 else rng.uniform(0.0, 0.01))
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), f"round {turn}: the child failed by itself"
            with open(read_end, "rb") as pipe:
                steps = len(pipe.read())
            for step in range(steps):
                model = expected(model, *plan(seed + turn, step))
            finished += steps
            operation = plan(seed + turn, steps)
            interrupted[operation[0]] += 1
            store = ProfileStore(path)
            later = expected(model, *operation)
            if not fits(store, model):
                assert fits(store, later), (
                    f"round {turn}, in {operation}: {store.names()} is neither {sorted(model)} nor {sorted(later)}"
                )
                model = later
            problems = [info.problem for info in store.list() if info.problem]
            assert not problems, (turn, operation, problems)
            for name, (_, states) in model.items():
                assert store.info(name).adaptations == len(states) - 1, (turn, operation, name)
    return {"rounds": rounds, "operations finished": finished, "killed in": dict(sorted(interrupted.items()))}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_store_survives_being_killed_at_any_moment() -> None:
    rounds = 500 if FULL else 40
    done = subprocess.run(
        [sys.executable, __file__, "--rounds", str(rounds)], capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert report["rounds"] == rounds and report["operations finished"] > rounds / 4


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(json.dumps(play(arguments.rounds, arguments.seed)))
