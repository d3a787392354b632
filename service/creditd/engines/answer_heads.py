"""From the states of a policy to logits in float32, for the few states that predict an answer, a part at a time.

Legend: `s` states, `H` their width, `V` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel

from creditd.engines.errors import ModelUnsuitableError

MOST_LOGITS = 1 << 22
"""Logits that are in memory at once, unless one outcome alone has more."""
VOCABULARY_PART = 1 << 24
"""Weights of a head that are turned to float32 at once."""
_AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Of the largest logit: what a head and its model may differ by, whose own logits are of its type."""

Call: TypeAlias = Callable[..., torch.Tensor]


class AnswerHead(Protocol):
    """What makes logits of what a pass returns for a position."""

    @property
    def averages(self) -> bool:
        """Whether the logits of a mean of states are the mean of their logits."""

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of states (s, ·), shape (s, V), float32, with a gradient if the states have one."""


class GivenLogits:
    """For passes that return logits already."""

    averages = True

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """The logits in float32."""
        return states.float()


@dataclass(frozen=True)
class Float32Weights:
    """A copy of the weights of a model in float32, for as long as it is held; weights of that type are not copied.

    Attributes:
        copies: By the identity of the parameter.
    """

    copies: dict[int, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> Float32Weights:
        """The copy of all parameters that are not float32."""
        shorter = [one for one in model.parameters() if one.is_floating_point() and one.dtype != torch.float32]
        return cls({id(one): one.detach().float() for one in shorter})

    def call(self, module: nn.Module) -> Call:
        """A module as it is called with these weights."""
        if not self.copies:
            itself: Call = module
            return itself
        named = {
            name: self.copies[id(one)] for name, one in module.named_parameters() if id(one) in self.copies
        }  # tied ones once: the call ties the others to them

        def called(*args: object, **options: object) -> torch.Tensor:
            found: torch.Tensor = functional_call(module, named, args, options)
            return found

        return called


@dataclass(frozen=True)
class PolicyHead:
    """The head of a causal language model, in float32 whatever its type.

    Attributes:
        model: Whose head it is.
        factor: The logits are multiplied by it.
        cap: c of c·tanh(z/c) around the logits; None where there is none.
        weights: A copy that is used instead of the model's own. None: parts of the head are turned to float32 as they
            are needed.
    """

    model: PreTrainedModel
    factor: float = 1.0
    cap: float | None = None
    weights: Float32Weights | None = None

    @property
    def averages(self) -> bool:
        """Whether it is linear."""
        return self.cap is None

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of states (s, H), shape (s, V), float32."""
        logits = self._linear(states) * self.factor if self.factor != 1.0 else self._linear(states)
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def _linear(self, states: torch.Tensor) -> torch.Tensor:
        head = self.model.get_output_embeddings()
        if self.weights is not None:
            return self.weights.call(head)(states.float()).float()
        # A head with an adapter around it knows by itself what it computes.
        if type(head) is not nn.Linear:
            found: torch.Tensor = head(states.to(self.model.dtype)).float()
            return found
        weight, bias = head.weight, head.bias
        if weight.dtype == torch.float32:
            return nn.functional.linear(states.float(), weight, bias)
        step = max(1, VOCABULARY_PART // weight.shape[1])
        parts = [
            nn.functional.linear(
                states.float(),
                weight[start : start + step].float(),
                None if bias is None else bias[start : start + step].float(),
            )
            for start in range(0, len(weight), step)
        ]
        return torch.cat(parts, dim=-1)


def policy_head(model: PreTrainedModel) -> PolicyHead:
    """The head of a model, once its logits were seen to be those of the model.

    Args:
        model: A causal language model in evaluation mode.

    Raises:
        ModelUnsuitableError: If they are not, whatever its configuration says of them.

    Cost:
        Two passes of a few tokens.
    """
    config = model.config.get_text_config()
    if model.get_output_embeddings() is None:
        raise ModelUnsuitableError(f"a {type(model).__name__} has no head for tokens; expected a causal language model")
    cap = getattr(config, "final_logit_softcapping", None)
    factors = {1.0}
    scale, scaling = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
    factors |= {float(scale)} if scale else set()
    factors |= {1.0 / float(scaling)} if scaling else set()
    row = torch.tensor([[1, 2, 3, 4, 5, 3, 2]], device=model.device) % int(config.vocab_size)
    with torch.inference_mode():
        expected = model(input_ids=row, use_cache=False).logits[0].float()
        states = model.base_model(input_ids=row, use_cache=False).last_hidden_state[0]
        allowed = _AGREEMENT[model.dtype] * float(expected.abs().max())
        for factor in sorted(factors, reverse=True):
            head = PolicyHead(model, factor, float(cap) if cap else None)
            found = head(states)
            if found.shape == expected.shape and float((found - expected).abs().max()) <= allowed:
                return head
    raise ModelUnsuitableError(
        f"the logits of a {type(model).__name__} are not those of its output embeddings; expected a causal language "
        "model whose head is linear, with a scale or a soft cap that its configuration names"
    )
