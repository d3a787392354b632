"""From the last hidden states of a model to one reward each, in float32."""

from __future__ import annotations

import copy
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.model_spec import HeadChoice

Floats: TypeAlias = NDArray[np.float64]

_HEADS = ("score", "classifier")
"""What models for sequence classification call their head."""


class RewardHead:
    """The head of a model for sequence classification, its weights as float32.

    Attributes:
        original: The head of the model itself, in the model's dtype.
        module: Its copy: takes states of shape (V, H) to logits of shape (V, labels).
    """

    def __init__(self, model: PreTrainedModel, choice: HeadChoice) -> None:
        """Copy the head.

        Args:
            model: A model with a head named as transformers names it.
            choice: Which number is the reward.

        Raises:
            ModelUnsuitableError: If the model has no such head, or more labels than the choice decides between.
        """
        found = [getattr(model, name) for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)]
        if not found:
            raise ModelUnsuitableError(
                f"{type(model).__name__} has no head for sequence classification; expected {' or '.join(_HEADS)}"
            )
        n_labels = int(model.config.num_labels)
        named = [choice.index] if choice.index is not None else list(choice.margin or ())
        if not named and n_labels != 1:
            raise ModelUnsuitableError(
                f"the head has {n_labels} labels; expected one, or a choice: head.index, or head.margin of two labels"
            )
        if any(not 0 <= label < n_labels for label in named):
            raise ModelUnsuitableError(f"the head has {n_labels} labels; got the labels {named}")
        self._n_labels = n_labels
        self.original = found[0]
        self.module = copy.deepcopy(self.original).float()
        self._choice = choice

    def __call__(self, states: torch.Tensor) -> Floats:
        """Rewards of states.

        Args:
            states: Shape (V, H), any float type.

        Returns:
            Shape (V,), float64, computed in float32.
        """
        with torch.inference_mode():
            logits = self.module(states.float())
        if logits.shape != (len(states), self._n_labels):
            raise RuntimeError(f"the head gave {tuple(logits.shape)}; expected {(len(states), self._n_labels)}")
        return self.of_logits(logits)

    def of_logits(self, logits: torch.Tensor) -> Floats:
        """Rewards of logits of shape (V, labels), shape (V,), float64."""
        choice = self._choice
        if choice.margin is not None:
            chosen = logits[:, choice.margin[0]] - logits[:, choice.margin[1]]
        else:
            chosen = logits[:, choice.index or 0]
        if choice.activation == "sigmoid":
            chosen = torch.sigmoid(chosen)
        elif choice.activation == "log_sigmoid":
            chosen = nn.functional.logsigmoid(chosen)
        rewards: Floats = chosen.double().cpu().numpy()
        return rewards
