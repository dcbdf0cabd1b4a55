"""Two processes over gloo: the same weights as one process, the same embeddings, shares that cover everything."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training import TINY_SHAPE, TINY_SPEC, prepared, random_embeddings, tiny_encoder
from train import ablation, recipes
from train.corpora import CORPORA
from train.distributed import barrier, process_group, rank, share, world_size
from train.finetune import fit
from train.model import save_checkpoint
from train.pairs import PairBatches, Recipe, Source
from train.prepare import PreparedSet
from train.schedule import Schedule
from train.teachers import embed_initial, open_teacher, targets_path, teach

RECIPE = Recipe(min_s=0.4, max_s=0.4, morph=0.0, pair_weight=0.5, softmax_weight=0.1, channel=0.0)
HERE = Path(__file__).parent

WORKER = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import test_distributed as t
with t.process_group():
    for function, folder in {works!r}:
        getattr(t, function)(Path(folder))
"""


def launch(works: dict[str, Path], processes: int = 2, killed: int | None = None) -> None:
    """Run functions of this file, each on its folder, in so many processes, as torchrun would.

    One process may be killed, and all end then.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pairs = [(function, str(folder)) for function, folder in works.items()]
    code = WORKER.format(tests=str(HERE), root=str(HERE.parent), works=pairs)
    running = []
    for number in range(processes):
        environment = os.environ | {
            "RANK": str(number), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        running.append(subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE))
    for number, process in enumerate(running):
        _, errors = process.communicate(timeout=300)
        if killed is None:
            assert process.returncode == 0, errors.decode()
        else:
            assert process.returncode != 0 and (number != killed or process.returncode == 9), errors.decode()


def source(folder: Path) -> Source:
    clips = PreparedSet(folder / "toy")
    return Source(clips, random_embeddings(clips), 1.0)


STEPS = 3


def train(folder: Path, accumulate: int = 1, out: str = "run") -> None:
    """What each rank runs: a few steps, its own end kept."""
    schedule = Schedule(STEPS, warmup_steps=1, checkpoint_every_s=0.0, accumulate=accumulate)
    batches = PairBatches([source(folder)], TINY_SPEC, RECIPE, 3, schedule.batches * world_size(), 1)
    with process_group():
        end = fit(tiny_encoder(rank()), TINY_SPEC, batches, schedule, folder / out, num_workers=0)
        barrier()
    torch.save(end.state_dict(), folder / f"{out}-{rank()}.pt")


def train_accumulating(folder: Path) -> None:
    """The same with two batches of each rank to a step."""
    train(folder, 2)


def train_until_killed(folder: Path) -> None:
    """What each rank runs: rank 1 is killed when it is asked for its last batch, after two steps."""

    class Deadly(PairBatches):
        def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
            if rank() == 1 and step == 2 * STEPS - 1:
                os._exit(9)
            return super().__getitem__(step)

    globals()["PairBatches"] = Deadly
    train(folder)


def ablate_all_layers(folder: Path) -> None:
    """What each rank runs: one arm, its rows kept."""
    arms = [arm for arm in ablation.ARMS if arm.name == "aam"]
    arms[0] = dataclasses.replace(arms[0], recipe=dataclasses.replace(arms[0].recipe, min_s=0.4, max_s=0.4))
    budget = ablation.Budget(Schedule(2, warmup_steps=1, frozen_stages=0), 2, whole=True)
    taught = source(folder)
    with process_group():
        rows = ablation.ablate(
            tiny_encoder(), TINY_SPEC, [(taught.clips, taught.embeddings)], folder / "out", arms, (1,), budget,
            num_workers=0,
        )  # fmt: skip
        barrier()
    names = [(row["arm"], row["seed"]) for row in rows]
    assert names == [("start", 0), ("aam", 1)], names


def teach_share(folder: Path) -> None:
    """What each rank runs: its share of the targets."""
    with process_group():
        found = teach(open_teacher(folder / "teacher.pt"), PreparedSet(folder / "toy"), folder / "targets")
        embed_initial(tiny_encoder(), TINY_SPEC, folder / "toy")
    assert (found is None) == (rank() != 0)


def compress_two_steps(folder: Path) -> None:
    """What each rank runs: two steps of a compression, its own end kept."""
    recipes.SMALL_SHARES = {"toy": 1.0}
    CORPORA["toy"] = CORPORA["librispeech"]
    shape = TINY_SHAPE
    with process_group():
        small = recipes.fit_small(
            tiny_encoder(), TINY_SPEC, folder, folder / "run", shape, Schedule(2, warmup_steps=1), 4, num_workers=0
        )
        barrier()
    torch.save(small.state_dict(), folder / f"small-{rank()}.pt")


@pytest.fixture
def folder(tmp_path):
    prepared(tmp_path / "toy", speakers=4, seconds=0.6)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What two processes did, started once: the folder of each function that they ran."""
    root = tmp_path_factory.mktemp("distributed")
    functions = (train, train_accumulating, ablate_all_layers, teach_share, compress_two_steps)
    works = {function.__name__: root / function.__name__ for function in functions}
    for folder in works.values():
        prepared(folder / "toy", speakers=4, seconds=0.6)
    save_checkpoint(works["teach_share"] / "teacher.pt", tiny_encoder(), TINY_SPEC)
    launch(works)
    return works


def ends(folder: Path, out: str = "run") -> list[dict[str, torch.Tensor]]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob(f"{out}-*.pt"))]


@pytest.mark.parametrize("function, each", [("train", 1), ("train_accumulating", 2)])
def test_two_processes_end_where_one_does_that_gathers_the_gradients_of_their_batches(done, function, each):
    folder = done[function]
    first, second = ends(folder)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["best.pt", "last.pt", "log.csv"]
    train(folder, 2 * each, "alone")
    (alone,) = ends(folder, "alone")
    for name, value in alone.items():
        assert torch.allclose(first[name], value, atol=2e-5, rtol=1e-3), name


def test_a_run_whose_rank_was_killed_goes_on_from_the_last_step(folder):
    launch({"train_until_killed": folder}, killed=1)
    assert torch.load(folder / "run" / "last.pt", weights_only=True)["step"] == 2
    launch({"train": folder})
    train(folder, 2, "alone")
    (alone,), (after, _) = ends(folder, "alone"), ends(folder)
    assert all(torch.allclose(value, after[name], atol=2e-5, rtol=1e-3) for name, value in alone.items())


def test_a_run_of_two_processes_is_gone_on_with_by_one(done, tmp_path):
    folder = shutil.copytree(done["train"], tmp_path / "copy")
    schedule = Schedule(STEPS + 1, warmup_steps=1)
    batches = PairBatches([source(folder)], TINY_SPEC, RECIPE, 3, STEPS + 1, 1)
    fit(tiny_encoder(), TINY_SPEC, batches, schedule, folder / "run", num_workers=0)
    assert torch.load(folder / "run" / "last.pt", weights_only=True)["step"] == STEPS + 1


def test_a_compression_by_two_processes_ends_in_one_encoder(done, monkeypatch):
    folder = done["compress_two_steps"]
    monkeypatch.setitem(CORPORA, "toy", CORPORA["librispeech"])
    first, second = (torch.load(folder / f"small-{r}.pt", weights_only=True) for r in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["best.pt", "last.pt", "log.csv"]
    alone = folder / "alone"
    monkeypatch.setattr(recipes, "SMALL_SHARES", {"toy": 1.0})
    one = recipes.fit_small(
        tiny_encoder(), TINY_SPEC, folder, alone, TINY_SHAPE, Schedule(2, warmup_steps=1), 4,
        num_workers=0,
    )  # fmt: skip
    assert any(not torch.equal(value, first[name]) for name, value in one.state_dict().items())


def test_an_arm_of_two_processes_is_one_row_of_the_table(done):
    folder = done["ablate_all_layers"]
    kept = (folder / "out" / "results.csv").read_text().splitlines()
    assert sum(",merged," in line for line in kept) == 2 and not [*(folder / "out" / "runs").iterdir()]


def test_targets_of_two_processes_equal_those_of_one(done):
    folder = done["teach_share"]
    teacher, clips = open_teacher(folder / "teacher.pt"), PreparedSet(folder / "toy")
    path = targets_path(teacher, clips, folder / "targets")
    assert [each.name for each in (folder / "targets").iterdir()] == [path.name]
    alone = teach(teacher, clips, folder / "alone")
    assert np.allclose(np.load(path), alone, atol=2e-3)  # batches of other sizes round otherwise
    assert np.allclose(np.load(folder / "toy" / "public.npy"), alone, atol=2e-3)
    assert not list((folder / "toy").glob("*part*"))


@pytest.mark.parametrize("count, processes", [(0, 2), (1, 2), (7, 3), (9, 3), (2, 5)])
def test_shares_cover_everything_once(monkeypatch, count, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    seen = []
    for number in range(processes):
        monkeypatch.setenv("RANK", str(number))
        seen += share(count)
    assert sorted(seen) == list(range(count))


def test_one_process_needs_no_group(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with process_group():
        barrier()
        assert (rank(), world_size()) == (0, 1) and not torch.distributed.is_initialized()
