"""The losses: additive angular margin softmax, pairs of one voice, and targets in the initial encoder's space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["AngularMarginSoftmax", "contrast_loss", "distillation_loss", "pair_loss", "relation_loss", "target_loss"]


class AngularMarginSoftmax(nn.Module):
    """AAM-softmax over training speakers (Deng et al., arXiv:1801.07698, eq. 3).

    Parameters
    ----------
    centres : Tensor, shape (speakers, embedding_dim)
        Initial class weights. The mean embedding of each speaker by the initial encoder needs no
        warm-up; random directions do.
    scale : float
        Of the logits.
    """

    def __init__(self, centres: Tensor, scale: float = 32.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(functional.normalize(centres.float(), dim=1))
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Mean cross-entropy of embeddings (batch, dim) whose labels (batch,) are class numbers; -1 is left out."""
        known = labels >= 0
        if not known.any():
            return embeddings.sum() * 0.0
        embeddings, labels = embeddings[known], labels[known]
        cosine = functional.normalize(embeddings.float(), dim=1) @ functional.normalize(self.weight, dim=1).T
        target = cosine.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
        # Beyond pi - margin the angle would wrap round: go on linearly, as ArcFace does.
        angled = target * math.cos(margin) - torch.sqrt(1 - target.square()) * math.sin(margin)
        moved = torch.where(target > math.cos(math.pi - margin), angled, target - margin * math.sin(math.pi - margin))
        logits = cosine.scatter(1, labels[:, None], moved)
        return functional.cross_entropy(self.scale * logits, labels)


def pair_loss(first: Tensor, second: Tensor) -> Tensor:
    """Mean of 1 - cos(e1, e2) over the parallel pairs of a batch (Tian et al., arXiv:2505.18498)."""
    return (1 - functional.cosine_similarity(first.float(), second.float(), dim=1)).mean()


def contrast_loss(first: Tensor, second: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Each first view nearer to its own second view than to those of other speakers; nameless rows (-1) are left out.

    Parameters
    ----------
    first, second : Tensor, shape (speakers, embedding_dim)
    labels : Tensor, shape (speakers,)
        Rows of equal label are no negatives of each other.
    scale : float
        Of the cosines.
    """
    known = labels >= 0
    if int(known.sum()) < 2:
        return first.sum() * 0.0
    first, second, labels = first[known], second[known], labels[known]
    cosine = functional.normalize(first.float(), dim=1) @ functional.normalize(second.float(), dim=1).T
    numbers = torch.arange(len(labels), device=labels.device)
    same = (labels[:, None] == labels[None]) & (numbers[:, None] != numbers[None])
    logits = (scale * cosine).masked_fill(same, -torch.inf)
    return 0.5 * (functional.cross_entropy(logits, numbers) + functional.cross_entropy(logits.T, numbers))


def target_loss(embeddings: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of 1 - cos(e, target): an embedding pulled to a point of the initial encoder's space."""
    distance = 1 - functional.cosine_similarity(embeddings.float(), targets.float(), dim=1)
    return (distance * weights).sum() / weights.sum().clamp_min(1e-6)


def relation_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Mean square difference between the cosines within a batch and those of its targets.

    A verifier lives by cosines between clips, not by places in a space (Park et al., arXiv:1904.05068).
    """
    embeddings = functional.normalize(embeddings.float(), dim=1)
    targets = functional.normalize(targets.float(), dim=1)
    return (embeddings @ embeddings.T - targets @ targets.T).square().mean()


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos to the teacher, plus the mean square difference of the batch's similarity matrices."""
    return pair_loss(student, teacher) + relation_loss(student, teacher)
