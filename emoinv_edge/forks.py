"""Forks of the process, kept from coming into the middle of what a child could not go on with."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

__all__ = ["FORKS"]

FORK_WAIT_S = 10.0


class _Forks:
    """Keeps a fork from coming into the middle of an inference or of a store's transaction.

    Both hold locks that the child would never see opened: ONNX Runtime's, and SQLite's own list of who has locked
    what. A fork waits for those that are under way, and new ones wait for the fork.
    """

    def __init__(self) -> None:
        self.generation = 0  # how many forks lie between this process and the one that loaded this module
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._wait, after_in_parent=self._go_on, after_in_child=self._begin_anew)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._running, self._forking = 0, False
        self._mine = threading.local()

    def _depth(self) -> int:
        """How many blocks this thread is in."""
        return int(getattr(self._mine, "depth", 0))

    @contextlib.contextmanager
    def kept_off(self) -> Iterator[None]:
        """Within this block no other thread's fork happens."""
        generation, depth = self.generation, self._depth()
        with self._changed:
            if depth == 0:  # what has begun must be able to end
                self._changed.wait_for(lambda: not self._forking)
            self._running += 1
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            if generation == self.generation:
                self._mine.depth = depth
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def _wait(self) -> None:
        self._changed.acquire()
        self._forking = True
        # What takes longer may fail in the child; the parent must not wait for ever.
        self._changed.wait_for(lambda: self._running <= self._depth(), FORK_WAIT_S)

    def _go_on(self) -> None:
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def _begin_anew(self) -> None:
        self.generation += 1
        self._begin()


FORKS = _Forks()
