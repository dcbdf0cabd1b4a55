"""Several encoders as one: each hears the same features, and their embeddings lie side by side.

The cosine of two such embeddings is the mean of the branches' cosines, weighed by their shares. Branches of other
shapes and training err on other trials, so that the mean errs less than each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .residual import EncoderShape, ResidualEncoder, SpeakerNet
from .tdnn import DenseTdnn, TdnnShape

__all__ = ["BranchedEncoder", "BranchesShape", "built", "read_shape"]


@dataclasses.dataclass(frozen=True, slots=True)
class BranchesShape:
    """Shape of a `BranchedEncoder`.

    Parameters
    ----------
    branches : tuple of EncoderShape or TdnnShape
    shares : tuple of float
        Of the cosine, above 0, with the sum 1.
    """

    branches: tuple[EncoderShape | TdnnShape, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.branches) != len(self.shares) or not self.shares:
            raise ValueError(f"expected a share for each branch, got {len(self.branches)} and {self.shares}")
        if min(self.shares) <= 0.0 or not math.isclose(sum(self.shares), 1.0, abs_tol=1e-6):
            raise ValueError(f"expected shares above 0 with the sum 1, got {self.shares}")
        if len({shape.num_mel_bins for shape in self.branches}) != 1:
            raise ValueError(f"expected branches that hear the same features, got {self.branches}")

    @property
    def embedding_dim(self) -> int:
        """Of all branches together."""
        return sum(shape.embedding_dim for shape in self.branches)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BranchesShape:
        """Undo `dataclasses.asdict`."""
        return cls(tuple(_branch_shape(each) for each in values["branches"]), tuple(values["shares"]))


class BranchedEncoder(SpeakerNet):
    """Branches of the given shapes, their weights not yet trained.

    An embedding has the norm that the first branch's has, which keeps its meaning as a measure of quality.

    Examples
    --------
    >>> encoder = BranchedEncoder(BranchesShape((BASE, CAMPPLUS), (0.5, 0.5)))
    >>> encoder(features).shape
    torch.Size([1, 448])
    """

    def __init__(self, shape: BranchesShape) -> None:
        super().__init__()
        self.shape = shape
        self.branches = nn.ModuleList(built(each) for each in shape.branches)

    @classmethod
    def of(cls, branches: Sequence[SpeakerNet], shares: Sequence[float]) -> BranchedEncoder:
        """Trained branches side by side; they are taken over, not copied."""
        encoder = cls(BranchesShape(tuple(branch.shape for branch in branches), tuple(shares)))
        encoder.branches = nn.ModuleList(branches)
        return encoder.eval()

    def forward(self, features: Tensor) -> Tensor:
        embeddings = [branch(features).float() for branch in self.branches]
        norms = [embedding.norm(dim=1, keepdim=True) for embedding in embeddings]
        parts = [
            math.sqrt(share) * embedding / norm
            for share, embedding, norm in zip(self.shape.shares, embeddings, norms, strict=True)
        ]
        together: Tensor = torch.cat(parts, dim=1) * norms[0]
        return together


def _branch_shape(values: dict[str, Any]) -> EncoderShape | TdnnShape:
    return TdnnShape.from_dict(values) if "layers" in values else EncoderShape.from_dict(values)


def built(shape: EncoderShape | TdnnShape | BranchesShape) -> SpeakerNet:
    """The encoder of a shape, its weights not yet trained."""
    if isinstance(shape, BranchesShape):
        return BranchedEncoder(shape)
    return DenseTdnn(shape) if isinstance(shape, TdnnShape) else ResidualEncoder(shape)


def read_shape(values: dict[str, Any]) -> EncoderShape | TdnnShape | BranchesShape:
    """The shape that a checkpoint holds as `dataclasses.asdict` of it."""
    return BranchesShape.from_dict(values) if "branches" in values else _branch_shape(values)
