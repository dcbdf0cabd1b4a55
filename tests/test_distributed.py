"""Two processes over gloo: the same gradients as one process, the same embeddings, shares that cover everything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training import TINY_SHAPE, TINY_SPEC, prepared, random_embeddings, tiny_encoder
from train import recipes
from train.corpora import CORPORA
from train.distributed import average_over_ranks, barrier, process_group, rank, share, world_size
from train.finetune import FineTuned, fit
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
getattr(t, {function!r})(Path({folder!r}))
"""


def launch(function: str, folder: Path, processes: int = 2) -> None:
    """Run a function of this file in so many processes, as torchrun would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = WORKER.format(tests=str(HERE), root=str(HERE.parent), function=function, folder=str(folder))
    running = []
    for number in range(processes):
        environment = os.environ | {
            "RANK": str(number), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        running.append(subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE))
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()


def source(folder: Path) -> Source:
    clips = PreparedSet(folder / "toy")
    return Source(clips, random_embeddings(clips), 1.0)


def train_two_steps(folder: Path) -> None:
    """What each rank runs: two steps, its gradients and weights kept."""
    batches = PairBatches([source(folder)], TINY_SPEC, RECIPE, 3, 2 * world_size(), 1)
    with process_group():
        fit(tiny_encoder(), TINY_SPEC, batches, Schedule(2, warmup_steps=1), folder / "run", num_workers=0)
        barrier()


def gradients_of(batches: PairBatches, steps: range) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss of some batches."""
    tuned = FineTuned(tiny_encoder(), torch.from_numpy(batches.centres), RECIPE, 0)
    losses = [tuned.losses(tuned(batches[step]["features"]), batches[step], 0.1)["loss"] for step in steps]
    (sum(losses) / len(losses)).backward()
    return {name: p.grad for name, p in tuned.named_parameters()}


def keep_gradients(folder: Path) -> None:
    """What each rank runs: one backward pass, its gradients averaged."""
    batches = PairBatches([source(folder)], TINY_SPEC, RECIPE, 3, world_size(), 1)
    with process_group():
        found = gradients_of(batches, range(rank(), rank() + 1))
        average_over_ranks(found.values())
        torch.save(found, folder / f"gradients-{rank()}.pt")
        barrier()


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


def test_gradients_of_two_processes_are_the_mean_of_both_batches_in_one(folder):
    launch("keep_gradients", folder)
    first, second = (torch.load(folder / f"gradients-{r}.pt", weights_only=True) for r in (0, 1))
    batches = PairBatches([source(folder)], TINY_SPEC, RECIPE, 3, 2, 1)
    for name, gradient in gradients_of(batches, range(2)).items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], gradient, atol=1e-6, rtol=1e-4), name


def test_a_run_of_two_processes_ends_in_one_checkpoint_of_the_whole(folder):
    launch("train_two_steps", folder)
    assert sorted(path.name for path in (folder / "run").iterdir()) == ["best.pt", "last.pt", "log.csv"]
    saved = torch.load(folder / "run" / "last.pt", weights_only=True)
    assert saved["step"] == 2
    batches = PairBatches([source(folder)], TINY_SPEC, RECIPE, 3, 3, 1)
    fit(tiny_encoder(), TINY_SPEC, batches, Schedule(3, warmup_steps=1), folder / "run", num_workers=0)  # by one
    assert torch.load(folder / "run" / "last.pt", weights_only=True)["step"] == 3


def test_a_compression_by_two_processes_ends_in_one_encoder(folder, monkeypatch):
    monkeypatch.setitem(CORPORA, "toy", CORPORA["librispeech"])
    launch("compress_two_steps", folder)
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


def test_targets_of_two_processes_equal_those_of_one(folder):
    save_checkpoint(folder / "teacher.pt", tiny_encoder(), TINY_SPEC)
    launch("teach_share", folder)
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
