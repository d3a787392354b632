"""The answer to `GET /v1/info`: what a service is, does and allows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from creditd.wire.fields import WireModel
from creditd.wire.v1 import Service


class Limits(WireModel):
    """What one request may ask for."""

    sets: int
    candidates: int
    """Of one set."""
    all_candidates: int
    """Of all sets together, each counted once for every reward that it has."""
    table_candidates: int
    token_advantages: int
    tokens_per_set: int
    """Completion tokens of one set, or of one completion."""
    units: int
    """Of one completion, after merging."""
    body_bytes: int
    """Of a JSON body, and of what a binary one has beside buffers."""
    binary_body_bytes: int
    held_bytes: int
    """Bodies and unread answers of all requests."""
    body_timeout_s: float
    """How long a head may take to arrive, and a body after it."""
    arrays: int
    """Of a body of either format, a buffer's shape included."""
    objects: int
    """Of a body of either format, buffers included."""
    requests_in_flight: int
    weight_bytes: int
    """All shards of one version of a policy's weights."""
    shard_bytes: int
    """One shard of them."""
    evaluations: int
    """Utilities of one game that the caller, or a model, evaluates."""
    model_characters: int
    """That a model reads for one request, prompts counted with each text."""
    span_characters: int
    """The same for coalitions of the units of completions."""
    policy_tokens: int
    """That a policy reads for one request."""
    evaluated_cells: int
    """Players times evaluations, over all games of a request."""
    targets: int
    """Scores, or topics, of one candidate."""
    log_det_candidates: int
    terms: int
    """Of a sum of utilities."""
    additions_per_set: int
    """Arithmetic of one set, to an order of magnitude."""


class PolicyWeights(WireModel):
    """Which weights a policy has."""

    id: str
    weight_version: str
    """That answers are of now; before any were pushed the digest of the files that the policy was loaded from."""
    announced_versions: list[str]
    """That somebody said will come, oldest first: requests wait for them."""
    swaps: int
    """How often weights were replaced since the start."""
    last_swap_s: float | None
    """For how long the policy answered nothing the last time; null before the first."""


class Info(WireModel):
    """What this service is and does."""

    service: Service
    utilities: list[str]
    credits: list[str]
    advantages: list[str]
    group_advantages: list[str]
    span_credits: list[str]
    """Of the units of a completion."""
    segmentations: list[str]
    """What units a completion may be cut into."""
    sensitivities: list[str]
    """How a policy's answer depends on the tokens before it."""
    probes: list[str]
    """What of its answer is watched."""
    parsers: list[str]
    """How reasoning and answer are found in a completion."""
    limits: Limits
    models: list[str]
    weights: list[PolicyWeights] = Field(default_factory=list)
    """Of each policy."""


class ModelInfo(WireModel):
    """One model that requests may name."""

    id: str
    kind: Literal["reward", "policy", "embedding"]
    backend: Literal["local", "remote", "fake"]
    """Whether it runs in this process, or another server runs it."""
    revision: str
    """What its operator calls this state of it."""
    weight_version: str | None
    """Of a policy, whose weights are replaced; null for a model whose weights stay."""
    weights: PolicyWeights | None = None
    """All that is known of a policy's weights."""
    dtype: str | None
    """Type of its weights; null for a remote model, of which it is not known."""
    device: str | None
    attention: str | None
    """What runs its attention."""
    reads_tries: bool | None
    """Whether distinct prefixes are computed once; if not, distinct texts are."""
    max_tokens: int | None
    """Longest text with its prompt; longer ones are `context_exceeded`, never cut."""
    weight_bytes: int | None
    """Memory of its weights."""
    working_bytes: int | None
    """Memory beside them, at most."""
    queued_tokens: int
    """Tokens that wait or are being run."""
    max_queued_tokens: int
    batches: int
    """Forward batches since the start."""
    silent_s: float
    """Seconds since its last sign of life, while it has work."""
    alive: bool
    """Whether it can still answer."""
    fingerprint: str | None = None
    """Digest of the files that it was loaded from: weights, their configuration, the pooling of an embedding model. The
    same in every process and directory; null for a model that is not of this process."""
    cached: bool = False
    """Whether what it says of texts may be remembered."""


class ServedModel(WireModel):
    """A reward model as clients of vLLM look for it."""

    id: str
    object: Literal["model"] = "model"
    max_model_len: int | None
    """Longest text in tokens; null where it is not known."""


class Models(WireModel):
    """The models of a service."""

    models: list[ModelInfo]
    object: Literal["list"] = "list"
    data: list[ServedModel] = Field(default_factory=list)
    """Those that `/classify` may be asked for, once more, in vLLM's words."""
