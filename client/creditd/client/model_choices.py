"""Which models of a service a request asks, and what they then have to be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel

from creditd.client.bodies import Choice, type_of
from creditd.client.mappings import Wanted
from creditd.wire.model_texts import OF_EMBEDDINGS


def model_choice(
    value: Choice | None, kind: Literal["model", "embedding"] = "model"
) -> Mapping[str, Any] | BaseModel | None:
    """The id of a model as the object that the wire wants; anything else as it is.

    Args:
        value: An id, a mapping or a model of `creditd.wire.v1`.
        kind: What the object is called.

    Returns:
        The same for every form.
    """
    return {"type": kind, "model": value} if isinstance(value, str) else value


def told_by_models(wanted: Wanted, utility: Choice, *, rewards: object, features: object) -> Wanted:
    """What a request needs to know where models tell a part of it.

    Args:
        wanted: What it would need without models.
        utility: What a set is worth, in any form.
        rewards: The choice of a reward model, or None.
        features: The choice of an embedding model, or None.

    Returns:
        What is left, with the texts and the prompts that the models read.
    """
    judged = type_of(utility) == "model"
    if not judged and rewards is None and features is None:
        return wanted
    told: set[str] = set() if features is None else set(OF_EMBEDDINGS)
    if rewards is not None:
        told.add("reward")
    of_sets = tuple(field for field in wanted.of_sets if field not in told)
    of_candidates = tuple(field for field in wanted.of_candidates if field not in told)
    prompts = judged or rewards is not None
    return replace(wanted, of_sets=(*of_sets, "prompt") if prompts else of_sets, of_candidates=(*of_candidates, "text"))
