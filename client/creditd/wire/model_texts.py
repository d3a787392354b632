"""What a request asks of models: whether, which, and the texts that they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from creditd.credit.set_utilities import Need, needs
from creditd.wire import utilities, v1
from creditd.wire.choices import utility_of
from creditd.wire.errors import ErrorCode
from creditd.wire.validation import wire_error

PlainPrompt: TypeAlias = str | list[dict[str, str]]


@dataclass(frozen=True)
class ModelNeeds:
    """What models have to be told of a request, and what they tell in turn.

    Attributes:
        texts: Whether each candidate needs its text.
        prompts: Whether each set needs its prompt.
        reward: Whether rewards come from a model.
    """

    texts: bool = False
    prompts: bool = False
    reward: bool = False


def model_needs(request: v1.ShapleyRequest) -> ModelNeeds:
    """What models have to be told.

    Args:
        request: A valid request.

    Returns:
        Nothing for a request that asks no model.

    Raises:
        WireError: If the choices of models contradict the utility.
    """
    if isinstance(request.utility, utilities.ModelUtility):
        if request.rewards is not None:
            detail = "a utility from a model uses no rewards; expected null, or another utility"
            raise wire_error(ErrorCode.INVALID_REQUEST, "/rewards", detail)
        return ModelNeeds(texts=True, prompts=True)
    if request.rewards is None:
        return ModelNeeds()
    if "reward" not in needs(utility_of(request.utility)):
        detail = f"{request.utility.type} uses no rewards; expected null, or another utility"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/rewards", detail)
    return ModelNeeds(texts=True, prompts=True, reward=True)


def needed_of(request: v1.ShapleyRequest) -> frozenset[Need]:
    """What the utility needs of candidates and sets that no model tells.

    Args:
        request: A valid request, whose choices do not contradict each other.

    Returns:
        Names of the fields.
    """
    if isinstance(request.utility, utilities.ModelUtility):
        return frozenset()
    found = needs(utility_of(request.utility))
    return found - {"reward"} if request.rewards is not None else found


def asks_models(request: v1.ShapleyRequest) -> bool:
    """Whether a request needs a model to be answered."""
    return request.rewards is not None or isinstance(request.utility, utilities.ModelUtility)


def prompts_of(request: v1.ShapleyRequest) -> list[PlainPrompt]:
    """The prompt of each set; an empty one where a set has none, which fails that set elsewhere."""
    if request.columns is not None:
        found: Sequence[Any] = request.columns.prompts or []
    else:
        found = ["" if item.prompt is None else item.prompt for item in request.sets or ()]
    return [one if isinstance(one, str) else [message.model_dump() for message in one] for one in found]


def texts_of(request: v1.ShapleyRequest) -> list[str | None]:
    """The text of each candidate, None for one that is not scored."""
    if request.columns is not None:
        return list(request.columns.texts or [])
    return [candidate.text for item in request.sets or () for candidate in item.candidates]
