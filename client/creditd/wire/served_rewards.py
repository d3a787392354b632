"""Schemas of the routes that speak as other servers do: `/get_reward` (OpenRLHF) and `/classify` (vLLM, verl).

The bodies are those of other projects, which add fields of their own: an unknown field is no error here. What is known
has its type, and a choice that would change the number and cannot be followed is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from typing_extensions import Self

from creditd.wire.errors import Problem
from creditd.wire.fields import MAX_SETS, WireModel
from creditd.wire.forms import Form
from creditd.wire.v1 import ChatMessage

MAX_MODEL_NAME = 4096
"""Longest name of a model in another server's request: verl sends a path."""


def _no_number(value: object) -> object:
    """The value, which is not 0: to Python that is False."""
    if value is False or value is None:
        return value
    raise ValueError("expected false")


Off: TypeAlias = Annotated[Literal[False], BeforeValidator(_no_number)]
"""A choice that is here as it is, and cannot be made otherwise."""
Texts: TypeAlias = Annotated[list[str], Field(fail_fast=True, max_length=MAX_SETS)]

GET_REWARD_EXAMPLE: JsonDict = {
    "query": ["<|user|>Name a river.<|assistant|>The Seine.<|end|>"],
    "prompts": ["<|user|>Name a river.<|assistant|>"],
    "labels": [""],
}
CLASSIFY_EXAMPLE: JsonDict = {
    "model": "rm",
    "input": "<|user|>Name a river.<|assistant|>The Seine.<|end|>",
    "use_activation": False,
}
CONVERSATION_EXAMPLE: JsonDict = {
    "messages": [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Seine."}]
}


class GetRewardRequest(WireModel):
    """What OpenRLHF posts to `--reward.remote_url`; 0, 1 or more queries. Other fields are not looked at."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [GET_REWARD_EXAMPLE]})

    query: Texts
    """Prompt and response of each sample as one text, special tokens written out. The model reads it to the letter."""
    prompts: Texts | None = None
    """One per query; null, or an empty list: not known. They do not change what is read."""
    labels: object = None
    """Not looked at: a reward model knows no label."""


class GetRewardResponse(WireModel):
    """Strictly one number per query."""

    rewards: list[float]
    """The model's reward of each query, finite."""
    scores: list[float]
    """The same numbers: what OpenRLHF filters by."""
    extra_logs: dict[str, list[float]]
    """Nothing: OpenRLHF makes a tensor of every entry."""


class ClassifyRequest(WireModel):
    """What vLLM's `/classify` takes, as far as a reward model can answer it. Other fields are not looked at."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [CLASSIFY_EXAMPLE, CONVERSATION_EXAMPLE]})
    forms = (
        Form("texts", present=("input",), absent=("messages",)),
        Form("conversation", present=("messages",), absent=("input",)),
    )

    model: Annotated[str, Field(max_length=MAX_MODEL_NAME)] | None = None
    """A reward model; null or empty: the only one."""
    input: str | Texts | None = None
    """Texts that are read as they are, each as a whole."""
    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=2, max_length=4096)] | None = None
    """One conversation, which goes through the model's chat template; the last message is the assistant's."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its own around a text; null: it does. A template writes those of a conversation."""
    use_activation: Off | None = None
    """Rewards are as the model's registration says: nothing is applied to them for a request."""
    activation: Off | None = None
    """What older versions called it."""
    softmax: Off | None = None
    """What still older versions called it."""
    truncate_prompt_tokens: None = None
    """Nothing is cut."""
    chat_template: None = None
    """The template is that of the model."""
    add_generation_prompt: Off | None = None
    continue_final_message: Off | None = None

    @model_validator(mode="after")
    def _texts_or_a_conversation(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected exactly one of input and messages")
        if self.messages is not None and self.messages[-1].role != "assistant":
            raise ValueError("a reward is of an answer: expected the last message to be the assistant's")
        if self.messages is not None and self.add_special_tokens:
            raise ValueError("the template of messages writes special tokens: expected add_special_tokens to be false")
        return self


class ClassifyRow(WireModel):
    """One text."""

    index: int
    """Which of the texts, from 0."""
    label: None
    """A reward is no label."""
    probs: list[float]
    """One number: the reward, finite. It is no probability."""
    num_classes: Literal[1]


class ClassifyUsage(WireModel):
    """What it cost."""

    prompt_tokens: int
    """Of all texts; 0 where another server runs the model and does not say."""
    total_tokens: int
    completion_tokens: Literal[0]
    prompt_tokens_details: None


class ClassifyResponse(WireModel):
    """vLLM's answer for a model with one label."""

    id: str
    """`classify-` and the identity of the request."""
    object: Literal["list"]
    created: int
    """Seconds since 1970."""
    model: str
    data: list[ClassifyRow]
    """In the order of the texts."""
    usage: ClassifyUsage


class ClassifyError(BaseModel):
    """A failure in vLLM's words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    message: str
    type: str
    param: str | None
    """`input_tokens` where a text is longer than the model reads."""
    code: int
    """The status."""


class ClassifyProblem(Problem):
    """A failure of `/classify`: a problem, and beside it what clients of vLLM look for."""

    error: ClassifyError | None = None
    """There where a model was asked, or was to be."""
