"""The text of a completion, and which characters each of its tokens stands for, by one decode that goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"
"""What a decoder has for bytes that are no character, or not yet."""
_MOST_UNFINISHED = 16
"""Tokens that are waited for at most until they make a character; bytes that never do are text as they are."""


def completion_text(
    tokenizer: Any,  # noqa: ANN401 - transformers' own
    ids: Sequence[int],
) -> tuple[str, list[tuple[int, int]]]:
    """The text of some tokens and the characters of each.

    Args:
        tokenizer: The policy's.
        ids: T token ids of its vocabulary.

    Returns:
        The text without special tokens, and for each token [start, stop) in it. Tokens that make a character together
        have it together; a special token has no character, and stands where it is.

    Cost:
        O(T) decodes of a few tokens each: those that are not settled, and the ones before them, which decide whether
        there is a blank.
    """
    special = set(tokenizer.all_special_ids)
    text, offsets = "", [(0, 0)] * len(ids)
    known: list[int] = []
    waiting: list[int] = []
    for place, token in enumerate(ids):
        if token in special:
            text = _settled(tokenizer, ids, text, offsets, known, waiting)
            known, waiting = known + waiting, []
            offsets[place] = (len(text), len(text))
            continue
        waiting.append(place)
        piece = _piece(tokenizer, [ids[one] for one in known], [ids[one] for one in waiting])
        if not piece.endswith(_UNFINISHED) or len(waiting) > _MOST_UNFINISHED:
            text = _settled(tokenizer, ids, text, offsets, known, waiting)
            known, waiting = waiting, []
    return _settled(tokenizer, ids, text, offsets, known, waiting), offsets


def _settled(
    tokenizer: Any,  # noqa: ANN401 - transformers' own
    ids: Sequence[int],
    text: str,
    offsets: list[tuple[int, int]],
    known: list[int],
    waiting: list[int],
) -> str:
    """The text with what waits, whose tokens get its characters."""
    if not waiting:
        return text
    piece = _piece(tokenizer, [ids[one] for one in known], [ids[one] for one in waiting])
    for place in waiting:
        offsets[place] = (len(text), len(text) + len(piece))
    return text + piece


def _piece(
    tokenizer: Any,  # noqa: ANN401 - transformers' own
    known: Sequence[int],
    fresh: Sequence[int],
) -> str:
    """What tokens add to the text of those before them."""
    before = _decoded(tokenizer, known) if known else ""
    return _decoded(tokenizer, [*known, *fresh])[len(before) :]


def _decoded(
    tokenizer: Any,  # noqa: ANN401 - transformers' own
    ids: Sequence[int],
) -> str:
    found: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return found
