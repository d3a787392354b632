"""Prompts of trainers as a reward model of the service reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypeGuard

Prompt: TypeAlias = str | list[dict[str, str]]

_INSTEAD = "expected messages of role and content alone, or a function as candidate reward"


def readable(prompt: object) -> Prompt:
    """A prompt as the wire has it.

    Args:
        prompt: A text, or messages; a field of a message that is None is none.

    Returns:
        The text itself, or the messages with `role` and `content`; content in parts of text becomes their text.

    Raises:
        ValueError: If there is something in it that no reward model of the service reads, such as an image or a call
            of a tool: the model would score an answer to another prompt.
    """
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence) or not prompt:
        raise ValueError(f"got {type(prompt).__name__} as the prompt of a reward model; expected a text or messages")
    return [_message(message, place) for place, message in enumerate(prompt)]


def told_apart(prompt: object) -> bytes:
    """A few bytes that are the same for the same prompt, in every process: by texts, numbers, bytes and their order.

    Arrays and tensors are what they hold. What is none of these, such as a picture, is not looked at: the same one is
    another object for each row.
    """
    return hashlib.blake2b(json.dumps(_plain(prompt), sort_keys=True).encode(), digest_size=16).digest()


def _plain(value: object) -> object:
    """A value as JSON has it."""
    if _is_mapping(value):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(own) for own in value]
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def _message(message: object, place: int) -> dict[str, str]:
    given = {str(key): value for key, value in message.items() if value is not None} if _is_mapping(message) else {}
    if given.keys() != {"role", "content"}:
        named = ", ".join(sorted(given)) or type(message).__name__
        raise ValueError(f"got {named} in message {place} of the prompt of a reward model; {_INSTEAD}")
    return {"role": str(given["role"]), "content": _content(given["content"], place)}


def _content(content: object, place: int) -> str:
    if isinstance(content, str):
        return content
    parts = list(content) if isinstance(content, Sequence) else []
    texts = [part["text"] for part in parts if _is_mapping(part) and part.get("type") == "text"]
    if not parts or len(texts) != len(parts):
        raise ValueError(f"got content that is not all text in message {place} of the prompt; {_INSTEAD}")
    return "".join(map(str, texts))


def _is_mapping(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, Mapping)
