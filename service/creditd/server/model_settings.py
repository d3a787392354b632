"""How models are registered: one entry per model, checked before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from typing_extensions import Self

from creditd.engines.model_spec import HeadChoice, ModelSpec, RemoteChoice

_ORIGIN = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>\d{1,5}))?/?")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Label = Annotated[int, Field(ge=0, le=1_000_000)]


class HeadSettings(_Entry):
    """Which number of a head is the reward."""

    index: Label | None = None
    """The label whose logit is the reward."""
    margin: tuple[Label, Label] | None = None
    """The reward is the logit of the first label less that of the second."""
    activation: Literal["none", "sigmoid", "log_sigmoid"] = "none"
    """Applied to that number."""

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.index is not None and self.margin is not None:
            raise ValueError("a head has an index or a margin: got both")
        return self


class RemoteSettings(_Entry):
    """A reward model that another server runs, as vLLM serves them."""

    url: str
    """Where it listens: `http://host:port`."""
    route: Literal["classify", "pooling"] = "classify"
    """Which of its routes is asked."""
    model: Annotated[str, Field(min_length=1)]
    """What it calls the model."""
    api_key: SecretStr | None = None
    """Bearer token."""
    api_key_file: Path | None = None
    """File that holds the bearer token."""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Longest wait for one answer."""
    max_connections: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests to it at a time."""
    texts_per_request: Annotated[int, Field(ge=1, le=4096)] = 64
    """Texts of one request at most."""
    takes_messages: bool = True
    """Whether it renders chat messages by a template of its own."""

    @field_validator("url")
    @classmethod
    def _is_an_origin(cls, url: str) -> str:
        match = _ORIGIN.fullmatch(url)
        if match is None or not 1 <= int(match["port"] or 80) <= 65535:
            raise ValueError("expected http://host:port or https://host:port and nothing behind it")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _key_is_usable(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("give api_key or api_key_file, not both")
        return self

    def choice(self) -> RemoteChoice:
        """The same for the engines.

        Raises:
            ValueError: If the file of the key cannot be read.
        """
        key = None if self.api_key is None else self.api_key.get_secret_value()
        if self.api_key_file is not None:
            try:
                key = self.api_key_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"api_key_file cannot be read: {error}") from None
        return RemoteChoice(key=key, **self.model_dump(exclude={"api_key", "api_key_file"}))


class ModelSettings(_Entry):
    """One registered model."""

    id: str
    """What requests call it: letters, digits, dots, dashes, underscores and slashes."""
    kind: Literal["reward", "policy", "embedding"] = "reward"
    """What it is for."""
    path: Path | None = None
    """Directory that `save_pretrained` wrote, below `models_root`."""
    remote: RemoteSettings | None = None
    """Where it is, for a model that another server runs; instead of a path."""
    revision: Annotated[str, Field(max_length=256)] = ""
    """What its operator calls this state of it; part of its identity. A remote model is remembered by it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of its weights in memory; the head of a reward model computes in float32."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?|mps|xpu(:\d+)?)$")] = "cpu"
    """Where it runs, as torch names devices."""
    attention: Literal["eager", "sdpa", "flex_attention", "flash_attention_2"] | None = None
    """Implementation, as transformers names it. Absent: the best that passes the check at boot."""
    head: HeadSettings = HeadSettings()
    """Which number of its head is the reward; needed for a head of more than one label."""
    chat_template: str | None = None
    """Jinja template instead of the model's own."""
    chat_template_file: Path | None = None
    """File that holds such a template."""
    pooling: Literal["mean", "first", "last"] | None = None
    """How an embedding model makes one vector of its tokens' states. Absent: as its directory says."""
    batch_tokens: Annotated[int, Field(ge=16, le=1 << 24)] = 4096
    """Tokens that are asked together at most; one longer work goes by itself."""
    chunk_tokens: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    """Tokens of one forward pass over a trie at most. Absent: `batch_tokens` on a GPU, 256 on a processor."""
    max_forward_bytes: Annotated[int, Field(ge=1)] | None = None
    """What a forward pass may need at most beside the weights. Absent: what is free, on a GPU."""
    max_queued_tokens: Annotated[int, Field(ge=16)] = 1 << 20
    """Tokens that wait at most; more are refused with 503 and Retry-After."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest sequence. Absent: as many as the model has positions."""
    cache: bool | None = None
    """Whether what it says of texts may be remembered. Absent: yes, unless its chat template reads the clock or it is
    remote without a revision, which has to change with its weights."""

    @field_validator("id")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._/-]{1,128}", name):
            raise ValueError("expected 1 to 128 letters, digits, dots, dashes, underscores or slashes")
        return name

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Self:
        if (self.path is None) == (self.remote is None):
            raise ValueError("expected exactly one of path and remote")
        if self.chat_template is not None and self.chat_template_file is not None:
            raise ValueError("give chat_template or chat_template_file, not both")
        self.spec()
        return self

    def spec(self) -> ModelSpec:
        """The same for the engines.

        Raises:
            ValueError: If a file that is named cannot be read.
        """
        template = self.chat_template
        if self.chat_template_file is not None:
            try:
                template = self.chat_template_file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"chat_template_file cannot be read: {error}") from None
        fields = self.model_dump(exclude={"head", "remote", "chat_template", "chat_template_file"})
        return ModelSpec(
            head=HeadChoice(**self.head.model_dump()),
            remote=None if self.remote is None else self.remote.choice(),
            chat_template=template,
            **fields,
        )
