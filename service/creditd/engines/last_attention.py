"""The attention that the last layer of a model pays from single positions, seen while the model runs as it always does.

The layer's attention module alone is told to call another function for one pass; that one calls the model's own, and
looks at queries and keys beside it. So no layer's table of positions by positions is ever made. Attention that makes
its own, as `eager` does, is taken from what the module returns, and of the last layer alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from creditd.engines.errors import ModelUnsuitableError

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

WATCHED_ATTENTION = "creditd_watched"
"""What transformers calls the function that looks at queries and keys."""
_FLAG = "output_attentions"
_OTHER_SCORES = ("softcap", "s_aux", "position_bias")
"""Options that make attention something else than queries times keys."""


@dataclass(frozen=True)
class Scores:
    """What one pass of the last layer's attention is made of.

    Attributes:
        query: Shape (B, heads, queries, d).
        key: Shape (B, heads of keys, keys, d).
        mask: As the model's attention got it.
        scaling: Of queries times keys.
        window: How many keys a query sees at most, itself among them; None: all.
    """

    query: torch.Tensor
    key: torch.Tensor
    mask: Any
    scaling: float
    window: int | None

    def row(self, batch: int, query: int, keys: Integers) -> Floats:
        """Attention from one position, as the mean over heads.

        Args:
            batch: Row of the batch.
            query: Position in it.
            keys: n positions of keys, rising: all that the query sees, or more where the mask is one of cells.

        Returns:
            Shape (n,), float64, of sum 1.

        Cost:
            O(n) for each number of a query.
        """
        device, n_groups = self.key.device, self.key.shape[1]
        places = torch.from_numpy(keys).to(device)
        # Groups of queries share a head of keys.
        looking = self.query[batch, :, query].float().unflatten(0, (n_groups, -1))
        known = self.key[batch].index_select(1, places).float()
        scores = (looking @ known.transpose(1, 2)).flatten(0, 1) * self.scaling
        if isinstance(self.mask, torch.Tensor) and self.mask.ndim == 4:
            mask = self.mask[min(batch, len(self.mask) - 1), :, min(query, self.mask.shape[2] - 1)]
            mask = mask.index_select(1, places)
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
        elif self.window is not None and self.window < len(keys):
            raise ValueError(f"attention with a window of {self.window} has no mask of cells for {len(keys)} keys")
        return _mean(scores.softmax(dim=-1))


@dataclass(frozen=True)
class Weights:
    """What the attention of the last layer returned, of shape (B, heads, queries, keys)."""

    weights: torch.Tensor

    def row(self, batch: int, query: int, keys: Integers) -> Floats:
        """Attention from one position; as `Scores.row`."""
        row = self.weights[batch, :, query]
        return _mean(row.index_select(1, torch.from_numpy(keys).to(row.device)))


Seen: TypeAlias = Scores | Weights
Look: TypeAlias = Callable[[Seen], None]


@dataclass
class _Watch:
    """Who looks at a module, and the function that it calls else."""

    original: str
    look: Look


@dataclass(frozen=True)
class LastAttention:
    """The attention module of the last layer of a model.

    Attributes:
        module: What computes it.
        is_told: Whether it calls its attention by name, so that it can be told to call another; else it returns weights
            where it is asked for them.
    """

    module: nn.Module
    is_told: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel) -> LastAttention:
        """Find it.

        Args:
            model: Any.

        Raises:
            ModelUnsuitableError: If the model does not say which of its modules it is.
        """
        found = [module for name, module in model.base_model.named_modules() if _is_recorded(model, name, module)]
        if found:
            return cls(found[-1])
        flagged = [module for module in model.base_model.modules() if _takes_flag(module)]
        innermost = [module for module in flagged if not any(map(_takes_flag, list(module.modules())[1:]))]
        if not innermost:
            raise ModelUnsuitableError(f"a {type(model).__name__} does not say which part of it is its attention")
        return cls(innermost[-1], is_told=False)

    @contextmanager
    def watched(self, look: Look) -> Iterator[None]:
        """Have every pass of the model looked at, on this thread.

        Args:
            look: Called in each pass, once the attention of the last layer is known.
        """
        name = self.module.config._attn_implementation if self.is_told else None  # noqa: SLF001 - it has no other name
        if name in (None, "eager"):
            with self._returned(look):
                yield
            return
        own = self.module.config
        self.module.config = copy.copy(own)
        self.module.config._attn_implementation_internal = WATCHED_ATTENTION  # noqa: SLF001 - of this module alone
        _watches[self.module] = _Watch(str(name), look)
        try:
            yield
        finally:
            del _watches[self.module]
            self.module.config = own

    @contextmanager
    def _returned(self, look: Look) -> Iterator[None]:
        """The same for attention that returns its weights."""

        def found(_module: nn.Module, _inputs: Any, outputs: Any) -> None:  # noqa: ANN401 - a model's own
            weights = [one for one in outputs if isinstance(one, torch.Tensor) and one.ndim == 4]
            if not weights:
                raise ValueError("the attention of the last layer returned no weights")
            look(Weights(weights[0]))

        def asked(module: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401 - a model's own
            bound = inspect.signature(module.forward).bind(*inputs, **options)
            bound.arguments[_FLAG] = True
            return bound.args, bound.kwargs

        handles = [self.module.register_forward_hook(found)]
        if not self.is_told:
            handles.append(self.module.register_forward_pre_hook(asked, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


_watches: dict[nn.Module, _Watch] = {}
"""By module; each is run by one thread at a time."""


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,  # noqa: ANN401 - whatever the model's attention takes
    scaling: float | None = None,
    **options: Any,  # noqa: ANN401 - whatever else a model has for its attention
) -> Any:  # noqa: ANN401 - what the model's own attention returns
    """The model's own attention, with somebody who looks."""
    watch = _watches[module]
    unknown = [name for name in _OTHER_SCORES if options.get(name) is not None]
    if unknown:
        raise ValueError(f"attention with {', '.join(unknown)} is more than queries and keys")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    watch.look(Scores(query, key, attention_mask, scale, options.get("sliding_window")))
    own = ALL_ATTENTION_FUNCTIONS.get_interface(watch.original, _nothing)
    return own(module, query, key, value, attention_mask, scaling=scaling, **options)


def _nothing(*_: Any, **__: Any) -> Any:  # noqa: ANN401 - as the attention
    raise ValueError("the model's own attention is not registered")


def _is_recorded(model: PreTrainedModel, name: str, module: nn.Module) -> bool:
    """Whether transformers itself looks at a module when the model is asked for its attention."""
    recorder = (getattr(model.base_model, "can_record_outputs", None) or {}).get("attentions")
    kind = getattr(recorder, "target_class", recorder)
    layer = (getattr(recorder, "layer_name", None) or "").strip(".")
    return isinstance(kind, type) and isinstance(module, kind) and (not layer or f".{layer}." in f".{name}.")


def _takes_flag(module: nn.Module) -> bool:
    return _FLAG in inspect.signature(module.forward).parameters


def _mean(rows: torch.Tensor) -> Floats:
    """The mean over heads of weights of shape (heads, keys)."""
    found: Floats = rows.double().mean(dim=0).cpu().numpy()
    return found


AttentionInterface.register(WATCHED_ATTENTION, _attention)
