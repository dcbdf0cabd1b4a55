"""Several processes, one result: what `torchrun` starts, and how work and results are shared.

Without ``torchrun`` every function does what one process needs: nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["barrier", "copy_from_first_rank", "from_first_rank", "process_group", "rank", "share", "world_size"]


Anything = TypeVar("Anything")


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def share(count: int) -> range:
    """The indices, of `count`, that this process works on."""
    return range(rank(), count, world_size())


@contextmanager
def process_group() -> Iterator[None]:
    """The group of all processes while the block runs: NCCL with CUDA, gloo without."""
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()
    elif world_size() > 1:
        with process_group():
            dist.barrier()


def copy_from_first_rank(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by that of rank 0."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_first_rank(make: Callable[[], Anything]) -> Anything:
    """What `make` gives on rank 0, on every rank; its error is an error on all of them.

    Raises
    ------
    Exception
        Whatever `make` raises.
    """
    if not dist.is_initialized():
        return make()
    shared: list[Any] = [None, None]
    if rank() == 0:
        try:
            shared[0] = make()
        except Exception as error:
            shared[1] = error
    dist.broadcast_object_list(shared, 0)
    if shared[1] is not None:
        raise shared[1]
    made: Anything = shared[0]
    return made
