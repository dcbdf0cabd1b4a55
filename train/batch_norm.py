"""Batch norm that comes for the training and goes with it.

The public weights have theirs folded into the convolutions, and a net without any learns slowly from a cut.
`insert_batch_norm` puts a fresh one behind every convolution so that the encoder computes what it did before;
`folded` multiplies them back in (Ioffe and Szegedy, arXiv:1502.03167). What is shipped has none.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .model import AnyNet, ResidualEncoder

__all__ = ["folded", "insert_batch_norm"]

MOMENTUM = 0.02  # statistics over some fifty batches


class _Normed(nn.Module):
    """A convolution without bias and the batch norm behind it."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        assert convolution.bias is not None
        self.convolution = convolution
        self.norm = nn.BatchNorm2d(convolution.out_channels, momentum=MOMENTUM).to(convolution.weight.device)
        with torch.no_grad():
            self.norm.bias.copy_(convolution.bias)
        convolution.bias = None
        self.fitting = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolution(x)
        if self.fitting:
            self._fit(y.float())
        normed: Tensor = self.norm(y)
        return normed

    def _fit(self, y: Tensor) -> None:
        """Take the statistics of this batch, and scale and shift by what undoes them."""
        variance, mean = torch.var_mean(y, dim=(0, 2, 3), unbiased=False)
        self.norm.running_mean, self.norm.running_var = mean, variance
        self.norm.weight.copy_(torch.sqrt(variance + self.norm.eps))
        self.norm.bias.add_(mean)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution that computes the same."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        scale = self.norm.weight / torch.sqrt(variance + self.norm.eps)
        return self.convolution.weight * scale[:, None, None, None], self.norm.bias - mean * scale


def _convolutions(encoder: ResidualEncoder) -> Iterator[tuple[nn.Module, str]]:
    """Where each convolution stands: its module and its name there, in the order in which they compute."""
    yield encoder, "stem"
    for block in (block for stage in encoder.blocks() for block in stage):
        yield block, "conv1"
        yield block, "conv2"
        if not isinstance(block.shortcut, nn.Identity):
            yield block, "shortcut"


def insert_batch_norm(encoder: ResidualEncoder, features: Tensor | None = None) -> ResidualEncoder:
    """Put a batch norm behind every convolution of `encoder`, in place.

    Parameters
    ----------
    features : Tensor, shape (batch, frames, bins), optional
        Mean-normalised. The norms start from the statistics of this batch, so that the encoder computes what it
        did; without it they must be loaded from a state before they are used.
    """
    for module, name in _convolutions(encoder):
        setattr(module, name, _Normed(getattr(module, name)))
    if features is not None:
        normed = [module for module in encoder.modules() if isinstance(module, _Normed)]
        for module in normed:
            module.fitting = True
        with torch.no_grad():
            encoder.eval()(features)
        for module in normed:
            module.fitting = False
    return encoder


def folded(encoder: AnyNet) -> AnyNet:
    """A plain encoder that computes what `encoder`, with its batch norms or without, does in evaluation."""
    if not isinstance(encoder, ResidualEncoder):  # it never has any
        return encoder.eval()
    plain = ResidualEncoder(encoder.shape)
    with torch.no_grad():
        plain.linear.load_state_dict(encoder.linear.state_dict())
        plain.mean_vector.copy_(encoder.mean_vector)
        for (module, name), (target, _) in zip(_convolutions(encoder), _convolutions(plain), strict=True):
            layer, plain_layer = getattr(module, name), getattr(target, name)
            weight, bias = layer.folded() if isinstance(layer, _Normed) else (layer.weight, layer.bias)
            plain_layer.weight.copy_(weight)
            plain_layer.bias.copy_(bias)
    return plain.eval()  # type: ignore[return-value]  # AnyNet is ResidualEncoder here
