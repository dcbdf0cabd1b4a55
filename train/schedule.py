"""How long a run is, and how fast it learns at each of its steps."""

from __future__ import annotations

import dataclasses
import math

__all__ = ["Schedule"]


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Steps and learning rates.

    Parameters
    ----------
    steps : int
    rate : float
        Peak for the last stage and the linear layer.
    lower_rate : float
        Each stage below learns at so many times the rate of the one above.
    frozen_stages : int
        The first ones, which do not learn.
    warmup_steps : int
        Over which the rate rises linearly to its peak.
    floor : float
        Share of the peak at the last step.
    checkpoint_every_s : float
    judge_every : int
        Steps between two judgements; 0 for none.
    accumulate : int
        Batches of each rank whose mean gradient makes a step: a larger batch than the memory holds.
    exponential : bool
        Whether the rate falls exponentially instead of by half a cosine.
    clip_norm : float
        A gradient of a larger norm is scaled down to it.
    """

    steps: int
    rate: float = 1.5e-4
    lower_rate: float = 0.6
    frozen_stages: int = 1
    warmup_steps: int = 100
    floor: float = 0.02
    checkpoint_every_s: float = 240.0
    judge_every: int = 0
    accumulate: int = 1
    exponential: bool = False
    clip_norm: float = 1.0

    @property
    def batches(self) -> int:
        """Batches of each rank over all steps."""
        return self.steps * self.accumulate

    def factor(self, step: int) -> float:
        """Share of the peak rate at `step`: linear warm-up, then a half cosine, or an exponential, to `floor`."""
        if self.exponential:
            falling = self.floor ** (step / self.steps)
            return float(falling * min(1.0, (step + 1) / self.warmup_steps))
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def judges(self, done: int) -> bool:
        """Whether the encoder is judged after so many steps: every ``judge_every`` and at the end."""
        return self.judge_every > 0 and (done % self.judge_every == 0 or done == self.steps)
