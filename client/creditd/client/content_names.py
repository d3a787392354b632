"""Names of candidates and prompts by their content: the same for the same content, in any process."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from creditd.client.arrays import Column, refusal
from creditd.client.bodies import per_set

_DIGEST_BYTES = 16


def candidate_names(sets: Sequence[Sequence[Any]]) -> list[list[str]]:
    """A name for each candidate that is a text.

    Args:
        sets: The candidates of each set.

    Returns:
        A digest of the text; for the second one of a set that has the same text, and so on, with its number behind.

    Raises:
        InvalidRequestError: If a candidate is no text.
    """
    found = []
    for row, candidates in enumerate(sets):
        names = []
        seen: Counter[str] = Counter()
        for place, candidate in enumerate(candidates):
            if not isinstance(candidate, str):
                detail = (
                    f"got {type(candidate).__name__}; expected a text, or candidate_ids that name candidates by their "
                    "content, because utilities are remembered under a utility_id"
                )
                raise refusal(f"/sets/{row}/{place}", detail)
            name = _digest(candidate)
            names.append(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
        found.append(names)
    return found


def prompt_names(prompts: Column | None, prompt_ids: Column | None, n_sets: int) -> Sequence[Any]:
    """A name for the prompt of each set.

    Args:
        prompts: What the candidates answer: texts, or lists of messages; or None.
        prompt_ids: Names of these by the caller; or None.
        n_sets: Number of sets.

    Returns:
        The caller's names, or digests of the prompts.

    Raises:
        InvalidRequestError: If there are both or neither, or a prompt is neither a text nor messages.
    """
    if (prompts is None) == (prompt_ids is None):
        given = "neither prompts nor prompt_ids" if prompts is None else "prompts and prompt_ids"
        detail = (
            f"got {given}; expected one of them, because utilities are remembered by prompt under a utility_id: "
            "prompt_ids may be the same for all sets if the function looks at no prompt"
        )
        raise refusal("/prompt_ids", detail)
    if prompt_ids is not None:
        return per_set(prompt_ids, n_sets, "prompt_ids")
    return [_prompt_name(prompt, row) for row, prompt in enumerate(per_set(prompts, n_sets, "prompts"))]


def _prompt_name(prompt: object, row: int) -> str:
    """A digest of a text or of messages; no text has that of messages."""
    messages = isinstance(prompt, (list, tuple)) and all(isinstance(message, Mapping) for message in prompt)
    if isinstance(prompt, str) or messages:
        try:
            # Escaped, two halves of a surrogate pair would be the same bytes as the character that they are halves of.
            return _digest(json.dumps(prompt, sort_keys=True, default=dict, ensure_ascii=False))
        except (TypeError, ValueError):
            pass
    detail = f"got {type(prompt).__name__}; expected a text or a list of messages, or prompt_ids instead"
    raise refusal(f"/prompts/{row}", detail)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
