"""What an operator registers of a model. Values alone: no torch, no files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

ModelKind: TypeAlias = Literal["reward", "policy", "embedding"]
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
Activation: TypeAlias = Literal["none", "sigmoid", "log_sigmoid"]


@dataclass(frozen=True)
class HeadChoice:
    """Which number of a head is the reward.

    Attributes:
        index: The label whose logit is the reward, or None.
        margin: Two labels: the reward is the logit of the first less that of the second. None: there is an index, or
            the head has one label.
        activation: Applied to that number.
    """

    index: int | None = None
    margin: tuple[int, int] | None = None
    activation: Activation = "none"

    def __post_init__(self) -> None:
        if self.index is not None and self.margin is not None:
            raise ValueError("a head has an index or a margin: got both")


@dataclass(frozen=True)
class ModelSpec:
    """One registered model.

    Attributes:
        id: What requests call it.
        path: Directory that `save_pretrained` wrote, inside the registry's root.
        kind: What it is for.
        revision: What its operator calls this state of it; part of its identity.
        dtype: Type of its weights in memory; the head of a reward model computes in float32.
        device: Where it runs, as torch names devices.
        attention: Implementation, as transformers names it. None: the one that transformers takes for the model.
        head: Which number of its head is the reward.
        chat_template: Jinja template instead of the model's own. None: its own, if it has one.
        batch_tokens: Tokens that are asked together at most; one longer work goes by itself.
        chunk_tokens: Tokens of one forward pass over a trie at most. None: as many as are asked together on a GPU; 256
            on a processor, where masks are dense.
        max_forward_bytes: What a forward pass may need at most beside the weights. None: what is free, on a GPU.
        max_queued_tokens: Tokens that wait at most.
        max_tokens: Longest sequence. None: as many as the model has positions.
    """

    id: str
    path: Path
    kind: ModelKind = "reward"
    revision: str = ""
    dtype: Dtype = "float32"
    device: str = "cpu"
    attention: str | None = None
    head: HeadChoice = HeadChoice()
    chat_template: str | None = None
    batch_tokens: int = 4096
    chunk_tokens: int | None = None
    max_forward_bytes: int | None = None
    max_queued_tokens: int = 1 << 20
    max_tokens: int | None = None
