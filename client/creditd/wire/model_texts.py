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
OF_EMBEDDINGS: frozenset[Need] = frozenset({"scores", "topics", "similarities"})
"""What an embedding model can tell."""


@dataclass(frozen=True)
class ModelNeeds:
    """What models have to be told of a request, and what they tell in turn.

    Attributes:
        texts: Whether each candidate needs its text.
        prompts: Whether each set needs its prompt.
        reward: Whether a model tells rewards, or what they would be needed for.
        features: Whether a model tells scores, topics or similarities.
    """

    texts: bool = False
    prompts: bool = False
    reward: bool = False
    features: bool = False


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
        for name in ("rewards", "features"):
            if getattr(request, name) is not None:
                detail = f"a utility from a model uses no {name}; expected null, or another utility"
                raise wire_error(ErrorCode.INVALID_REQUEST, f"/{name}", detail)
        return ModelNeeds(texts=True, prompts=True, reward=True)
    reward, features = request.rewards is not None, request.features is not None
    if not reward and not features:
        return ModelNeeds()
    needed = needs(utility_of(request.utility))
    if reward and "reward" not in needed:
        detail = f"{request.utility.type} uses no rewards; expected null, or another utility"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/rewards", detail)
    if features:
        _check_features(request, needed)
    return ModelNeeds(texts=reward or features, prompts=reward, reward=reward, features=features)


def _check_features(request: v1.ShapleyRequest, needed: frozenset[Need]) -> None:
    """The utility has a use for what an embedding model says."""
    terms = request.utility.terms or () if isinstance(request.utility, utilities.SumUtility) else ()
    types = [request.utility.type, *(term.utility.type for term in terms)]
    if not needed & OF_EMBEDDINGS:
        detail = f"{request.utility.type} uses none; expected null, or another utility"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/features", detail)
    if "noisy_or" in types:
        detail = "noisy_or takes probabilities, and a cosine is none; expected scores in the sets, or another utility"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/features", detail)
    if "topics" in needed and request.features is not None and request.features.threshold is None:
        detail = "threshold is missing; it says which cosine covers a target"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/features/threshold", detail)


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
    if request.rewards is not None:
        found -= {"reward"}
    return found if request.features is None else found - OF_EMBEDDINGS


def asks_models(request: v1.ShapleyRequest) -> bool:
    """Whether a request needs a model to be answered."""
    from_model = isinstance(request.utility, utilities.ModelUtility)
    return from_model or request.rewards is not None or request.features is not None


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
