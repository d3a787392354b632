"""What an operator registers of a model. Values alone: no torch, no files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

_CLOCK = "strftime_now"
"""What transformers calls the clock in chat templates."""
ModelKind: TypeAlias = Literal["reward", "policy", "embedding"]
Dtype: TypeAlias = Literal["float32", "bfloat16", "float16"]
Pooling: TypeAlias = Literal["mean", "first", "last"]
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
class RemoteChoice:
    """A model that another server runs, as vLLM serves them.

    Attributes:
        url: Where it listens, without a path: `http://host:port`.
        route: Which of its routes is asked; both for logits, so that the head is chosen here.
        model: What it calls the model.
        key: Bearer token, or None.
        timeout_s: Longest wait for one answer.
        max_connections: Requests to it at a time.
        texts_per_request: Texts of one request at most; chat messages go one conversation at a time.
        takes_messages: Whether it renders chat messages with a template of its own.
    """

    url: str
    route: Literal["classify", "pooling"] = "classify"
    model: str = ""
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    max_connections: int = 8
    texts_per_request: int = 64
    takes_messages: bool = True

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("a remote model has a url of HTTP: expected http://host:port")
        if "@" in self.url:
            raise ValueError("a url is logged: expected none with a password, and the secret as key")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("a key goes in a header: expected printable ASCII")
        if self.timeout_s <= 0 or self.max_connections < 1 or self.texts_per_request < 1:
            raise ValueError(
                f"got timeout_s {self.timeout_s}, max_connections {self.max_connections} and texts_per_request "
                f"{self.texts_per_request}; expected a time above 0 and numbers of at least 1"
            )


@dataclass(frozen=True)
class ModelSpec:
    """One registered model.

    Attributes:
        id: What requests call it.
        path: Directory that `save_pretrained` wrote, inside the registry's root; None for a remote model.
        remote: Where a remote model is; None for one that is run here.
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
        pooling: How an embedding model makes one vector of its tokens' states. None: as its directory says.
        cache: Whether what it says of texts may be remembered. None: as `is_remembered` says.
    """

    id: str
    path: Path | None = None
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
    pooling: Pooling | None = None
    remote: RemoteChoice | None = None
    cache: bool | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.remote is None):
            raise ValueError("a model has a path, or is remote: expected exactly one of path and remote")
        if self.cache and self.remote is not None and not self.revision:
            raise ValueError("a remote model is remembered by its revision: expected one")

    def is_remembered(self, template: str | None = None) -> bool:
        """Whether what the model said of a text may stand for what it would say now.

        Which weights another server has, only its operator can vouch for: a remote model is remembered by its
        `revision`, which has to change with them, and not at all without one. A chat template that reads the clock
        makes other texts every day.

        Args:
            template: The chat template that prompts of messages go through, as far as it is known here.

        Returns:
            `cache`, if that is registered, else whether the identity of the model decides its numbers.
        """
        if self.cache is not None:
            return self.cache
        vouched = self.remote is None or bool(self.revision)
        return vouched and _CLOCK not in (template or "")
