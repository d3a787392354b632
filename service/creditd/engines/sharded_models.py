"""Models of which each process has a part: which ones they are, and their gradients while they are asked something.

FSDP of the first kind (`FullyShardedDataParallel`) puts the gradient that a part of the weights has gathered aside when
a way back begins, and brings it back when that way has ended at the weights. One to the embeddings alone does not end
there, and the gradient would be lost without a word. Nor may such a way bring gradients of processes together that
gathered apart: FSDP of either kind would take it for the last one of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_SHARDING = ("FullyShardedDataParallel", "FSDPModule")
_ASIDE = "_saved_grad_shard"
"""Where FSDP of the first kind puts a gradient, as an attribute of its weights."""
_TOGETHER = "_sync_gradients"
"""Whether modules of the first kind bring gradients of processes together."""
_STATE = "_get_fsdp_state"
"""What modules of the second kind have instead, whose groups of weights have it as `reduce_grads`."""


def is_sharded(model: nn.Module) -> bool:
    """Whether each process has a part of the weights alone: FSDP of either kind, or ZeRO-3."""
    names = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    return any(name in names for name in _SHARDING) or any(hasattr(one, "ds_id") for one in model.parameters())


@contextmanager
def kept_gradients(model: nn.Module) -> Iterator[None]:
    """Gradients of weights are afterwards what they were before: the same tensors, and the same put aside.

    Args:
        model: A model with no way back under way.

    Cost:
        No copy: nothing adds to gradients meanwhile.
    """
    kept = [_Gradient.of(weights) for weights in _weights_of(model)]
    switches = _switches_of(model)
    for owner, name, _ in switches:
        setattr(owner, name, False)
    try:
        yield
    finally:
        for owner, name, value in switches:
            setattr(owner, name, value)
        for one in kept:
            one.restore()


@dataclass(frozen=True)
class _Gradient:
    """What some weights have gathered.

    Attributes:
        weights: Whose it is.
        gradient: The tensor, and what it holds, in whatever shape: whole weights of FSDP have gradients of another one
            than their part. None: there is none.
        aside: What FSDP put aside.
    """

    weights: torch.Tensor
    gradient: tuple[torch.Tensor, torch.Tensor] | None
    aside: dict[str, Any]

    @classmethod
    def of(cls, weights: torch.Tensor) -> _Gradient:
        """What there is now."""
        gradient = weights.grad
        aside = {_ASIDE: getattr(weights, _ASIDE)} if hasattr(weights, _ASIDE) else {}
        return cls(weights, None if gradient is None else (gradient, gradient.detach()), aside)

    def restore(self) -> None:
        """As it was."""
        now = self.weights.grad
        if self.gradient is None:
            self.weights.grad = None
        elif now is not self.gradient[0] or now.shape != self.gradient[1].shape:
            self.weights.grad = torch.empty_like(self.weights)  # another shape cannot be given, but taken
            self.weights.grad.data = self.gradient[1]
        if hasattr(self.weights, _ASIDE):
            delattr(self.weights, _ASIDE)
        for name, value in self.aside.items():
            setattr(self.weights, name, value)


def _weights_of(model: nn.Module) -> list[torch.Tensor]:
    """Parameters, and the flat ones in which FSDP of the first kind may hide them."""
    handles: list[Any] = [getattr(module, "_handle", None) for module in model.modules()]
    flat = [getattr(handle, "flat_param", None) for handle in handles]
    return [*model.parameters(), *(one for one in flat if isinstance(one, torch.Tensor))]


def _switches_of(model: nn.Module) -> list[tuple[object, str, bool]]:
    """Whether the end of a way back brings gradients of processes together: owners, names and values of both FSDPs."""
    found: list[tuple[object, str, bool]] = []
    for module in model.modules():
        if hasattr(module, _TOGETHER):
            found.append((module, _TOGETHER, bool(getattr(module, _TOGETHER))))
        if hasattr(module, _STATE):
            state = getattr(module, _STATE)()
            # One group of weights in older versions of torch, several in newer ones.
            groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
            found += [(group, "reduce_grads", bool(group.reduce_grads)) for group in groups if group is not None]
    return found
