"""Bodies and answers of a reward model that vLLM serves; no network.

Written from the classes of vLLM 0.33.0: `entrypoints/pooling/base/protocol.py`, `entrypoints/pooling/classify/`,
`entrypoints/pooling/pooling/`, `entrypoints/serve/engine/protocol.py`, `entrypoints/serve/exception_handling/`,
`renderers/params.py` and `v1/engine/input_processor.py`.

Both routes are asked for logits. `use_activation` is the name; older versions called it `activation`, and a server
ignores the name that it does not know. No field cuts a text: `truncate_prompt_tokens` is left out, and what is too long
is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.engines.errors import EngineFailedError
from creditd.engines.model_spec import HeadChoice, ModelSpec, RemoteChoice

Floats: TypeAlias = NDArray[np.float64]
Message: TypeAlias = tuple[tuple[str, str], ...]
Text: TypeAlias = str | tuple[Message, ...]
"""A text, or chat messages as pairs of a name and a value, so that equal ones are found."""
Reason: TypeAlias = Literal["too_long", "empty", "non_finite"]

_TOO_LONG_PARAMS = frozenset({"input_tokens", "input_text"})
"""What 0.33.0 names when a prompt has more tokens, or more characters, than the model reads."""
_REASONS: tuple[tuple[str, Reason], ...] = (
    ("maximum context length", "too_long"),
    ("longer than the maximum model length", "too_long"),
    ("prompt cannot be empty", "empty"),
    # A number that JSON cannot carry makes the answer itself fail, as if the request were bad.
    ("Out of range float values", "non_finite"),
)
"""Words in a refusal that belong to one text of a request; the words themselves are passed on to nobody."""
_NAMED_TYPES = frozenset(
    {
        "Bad Gateway", "Bad Request", "BadRequestError", "Gateway Timeout", "Internal Server Error",
        "InternalServerError", "Method Not Allowed", "Not Found", "NotFoundError", "NotImplementedError",
        "Service Unavailable", "ServiceUnavailableError", "Too Many Requests", "Unauthorized",
        "UnprocessableEntityError", "Unprocessable Entity",
    }
)  # fmt: skip
_NAMED_PARAMS = frozenset(
    {"add_special_tokens", "chat_template", "input", "input_text", "input_tokens", "messages", "model", "task"}
)
_SOFTMAX_ERROR = 1e-6
"""How far probabilities of float32 are from 1 in their sum, for a label."""


@dataclass(frozen=True)
class Rewards:
    """What one answer says.

    Attributes:
        values: Shape (texts,), float64; NaN where the model's number is not finite.
        n_tokens: Tokens of all its texts; 0 where the server does not say.
    """

    values: Floats
    n_tokens: int


@dataclass(frozen=True)
class Refusal:
    """Why there is no answer.

    Attributes:
        status: Of HTTP.
        name: What may be passed on of it: the status, with the server's type and parameter if they are known ones.
        reason: What is wrong with a text; None if the refusal is of the whole request.
    """

    status: int
    name: str
    reason: Reason | None


def body(spec: ModelSpec, texts: Sequence[Text], *, special: bool = True) -> bytes:
    """What is posted.

    Args:
        spec: A remote model.
        texts: Strings, or one conversation.
        special: Whether the server's tokenizer adds its special tokens around strings.

    Returns:
        JSON, UTF-8.
    """
    remote = _remote(spec)
    fields: dict[str, Any] = {"use_activation": False, "activation": False}
    if remote.model:
        fields["model"] = remote.model
    if remote.route == "pooling":
        # Otherwise a model with an embedding would answer with that.
        fields |= {"task": "classify", "encoding_format": "float"}
    if isinstance(texts[0], str):
        fields |= {"input": list(texts), "add_special_tokens": special}
    else:
        fields["messages"] = [dict(message) for message in texts[0]]
        fields |= {"add_generation_prompt": False, "continue_final_message": False, "add_special_tokens": False}
        if spec.chat_template is not None:
            fields["chat_template"] = spec.chat_template
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def rewards(spec: ModelSpec, content: bytes, n_texts: int) -> Rewards:
    """The rewards of an answer.

    Args:
        spec: A remote model.
        content: The answer's body.
        n_texts: Texts that were asked for.

    Returns:
        One number for each text, in the order in which they were asked for, whatever the order of the answer.

    Raises:
        EngineFailedError: If the answer has another shape, or the head needs a choice.
    """
    answer = _object(content)
    rows = answer.get("data")
    if not isinstance(rows, list) or len(rows) != n_texts:
        got = f"{len(rows)} results" if isinstance(rows, list) else "no list `data`"
        raise EngineFailedError(f"{_whose(spec)} answered with {got}; expected {n_texts}")
    logits: list[Floats | None] = [None] * n_texts
    for row in rows:
        index = row.get("index") if isinstance(row, dict) else None
        if type(index) is not int or not 0 <= index < n_texts or logits[index] is not None:
            raise EngineFailedError(
                f"{_whose(spec)} answered out of order; expected each index from 0 to {n_texts - 1}"
            )
        logits[index] = _logits(spec, row)
    found = [row for row in logits if row is not None]
    if len({len(row) for row in found}) != 1:
        raise EngineFailedError(
            f"{_whose(spec)} answered with different numbers of labels; expected one number of them"
        )
    matrix = np.stack(found)
    if _are_probabilities(matrix):
        raise EngineFailedError(
            f"{_whose(spec)} answered with probabilities; expected logits, which it gives for use_activation = false"
        )
    return Rewards(chosen(spec, matrix), _n_tokens(answer))


def chosen(spec: ModelSpec, logits: Floats) -> Floats:
    """The number of each row that is the reward.

    Args:
        spec: A remote model.
        logits: Shape (texts, labels).

    Returns:
        Shape (texts,); NaN where it is not finite.

    Raises:
        EngineFailedError: If the head has several labels and no choice, or the choice has another label.
    """
    choice, n_labels = spec.head, logits.shape[1]
    named = [choice.index] if choice.index is not None else list(choice.margin or ())
    if not named and n_labels != 1:
        raise EngineFailedError(
            f"{_whose(spec)} has {n_labels} labels; expected one, or a choice: head.index, or head.margin of two labels"
        )
    if any(not 0 <= label < n_labels for label in named):
        raise EngineFailedError(f"{_whose(spec)} has {n_labels} labels; head names {named}")
    with np.errstate(all="ignore"):
        values = _activated(choice, logits)
    return np.where(np.isfinite(values), values, np.nan)


def refusal(status: int, content: bytes) -> Refusal:
    """What a status other than 200 says.

    Args:
        status: Of HTTP.
        content: The answer's body, JSON or not.

    Returns:
        Nothing of the server's own words, which may repeat the request: only what is on a list.
    """
    error: Mapping[str, Any] = {}
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        error = answer["error"]
    kind, param, message = error.get("type"), error.get("param"), error.get("message")
    name = f"HTTP {status}"
    if isinstance(kind, str) and kind in _NAMED_TYPES:
        name += f" {kind}"
    if isinstance(param, str) and param in _NAMED_PARAMS:
        name += f" ({param})"
    reason: Reason | None = None
    if status in {400, 422}:
        if isinstance(param, str) and param in _TOO_LONG_PARAMS:
            reason = "too_long"
        elif isinstance(message, str):
            reason = next((reason for words, reason in _REASONS if words in message), None)
    return Refusal(status, name, reason)


def served_models(content: bytes) -> dict[str, int | None]:
    """The models of an answer of `/v1/models`: their longest sequences by their names.

    Raises:
        EngineFailedError: If it is no such answer.
    """
    cards = _object(content).get("data")
    if not isinstance(cards, list) or not all(
        isinstance(card, dict) and isinstance(card.get("id"), str) for card in cards
    ):
        raise EngineFailedError("the answer of /v1/models is no list of models")
    lengths = {card["id"]: card.get("max_model_len") for card in cards}
    return {name: length if type(length) is int and length > 0 else None for name, length in lengths.items()}


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EngineFailedError("the remote model's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise EngineFailedError("the remote model's answer is no JSON object")
    return answer


def _logits(spec: ModelSpec, row: dict[str, Any]) -> Floats:
    field = "probs" if _remote(spec).route == "classify" else "data"
    values = row.get(field)
    # A number that is not finite is null where vLLM writes JSON with orjson.
    if (
        not isinstance(values, list)
        or not values
        or not all(value is None or type(value) in {int, float} for value in values)
        or row.get("num_classes", len(values)) != len(values)
    ):
        raise EngineFailedError(f"{_whose(spec)} answered without numbers; expected a list `{field}` of one per label")
    return np.asarray([_finite(value) for value in values], dtype=np.float64)


def _finite(value: float | None) -> float:
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _are_probabilities(logits: Floats) -> bool:
    """Whether every row sums to one without a negative number, as a softmax does that was not asked for."""
    n_labels = logits.shape[1]
    off = np.abs(logits.sum(axis=1) - 1.0)
    return n_labels > 1 and bool((logits >= 0).all() and (off <= n_labels * _SOFTMAX_ERROR).all())


def _activated(choice: HeadChoice, logits: Floats) -> Floats:
    if choice.margin is not None:
        values = logits[:, choice.margin[0]] - logits[:, choice.margin[1]]
    else:
        values = logits[:, choice.index or 0]
    if choice.activation == "none":
        return values
    log_sigmoid: Floats = -np.logaddexp(0.0, -values)
    return log_sigmoid if choice.activation == "log_sigmoid" else np.exp(log_sigmoid)


def _n_tokens(answer: dict[str, Any]) -> int:
    usage = answer.get("usage")
    n_tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return n_tokens if type(n_tokens) is int and n_tokens > 0 else 0


def _whose(spec: ModelSpec) -> str:
    return f"the remote model {spec.id!r}"


def _remote(spec: ModelSpec) -> RemoteChoice:
    if spec.remote is None:
        raise ValueError(f"the model {spec.id!r} is not remote")
    return spec.remote
