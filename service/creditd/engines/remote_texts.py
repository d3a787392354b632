"""Texts as a remote model is asked for them: whole, each different one once, in requests of some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.protocol import EngineUsage, PreparedTexts, TextFailure, VariantTexts
from creditd.engines.remote_wire import Text

Integers: TypeAlias = NDArray[np.int64]

NO_ATTENTION = "another server does not tell its model's attention; expected a model that runs here"
NO_TOKENIZER = "the tokenizer of a model on another server is not known here; expected a text"
_CHARACTERS_PER_TOKEN = 4
_UNENCODABLE = TextFailure("engine_failed", "the text has half a surrogate pair, which JSON cannot carry")


@dataclass(frozen=True)
class RemoteTexts:
    """Texts that a remote model is asked for.

    Attributes:
        distinct: Each text once.
        places: Shape (fitting variants,): which of `distinct` each variant is.
        n_tokens: Guessed of the distinct ones: a token for each four characters.
        naive_share: Characters of all variants over those of the distinct ones.
        adds_special_tokens: Whether the server's tokenizer adds its special tokens around strings.
    """

    distinct: tuple[Text, ...]
    places: Integers
    n_tokens: int
    naive_share: float
    adds_special_tokens: bool = True


def remote_texts(texts: Sequence[VariantTexts], *, takes_messages: bool) -> PreparedTexts:
    """The work of texts.

    Args:
        texts: Prompts with their completions.
        takes_messages: Whether prompts may be chat messages; the completion is then the assistant's last.

    Returns:
        `RemoteTexts`; its usage has the different texts, and no tokens.

    Raises:
        ModelUnsuitableError: If a prompt has messages that are not taken.
        ValueError: If special tokens are added around some of the texts and not around others.
    """
    if len({one.adds_special_tokens for one in texts}) > 1:
        raise ValueError("special tokens are added around all texts of a request or around none: got both")
    whole = [text for one in texts for text in _whole(one, takes_messages=takes_messages)]
    failures = {place: _UNENCODABLE for place, text in enumerate(whole) if not _is_encodable(text)}
    fitting = [text for place, text in enumerate(whole) if place not in failures]
    if not fitting:
        return PreparedTexts(len(whole), failures, EngineUsage(), None)
    numbers: dict[Text, int] = {}
    places = np.asarray([numbers.setdefault(text, len(numbers)) for text in fitting], dtype=np.int64)
    lengths = [max(1, sum(map(len, _values(text)))) for text in numbers]
    work = RemoteTexts(
        distinct=tuple(numbers),
        places=places,
        n_tokens=sum(-(-length // _CHARACTERS_PER_TOKEN) for length in lengths),
        naive_share=sum(lengths[place] for place in places) / sum(lengths),
        adds_special_tokens=texts[0].adds_special_tokens,
    )
    return PreparedTexts(len(whole), failures, EngineUsage(evaluations=len(numbers)), work)


def parts(texts: Sequence[Text], most: int) -> list[list[int]]:
    """Which texts go in one request.

    Args:
        texts: Strings and conversations.
        most: Strings of one request at most.

    Returns:
        Places of texts: of strings together, of each conversation by itself.
    """
    strings = [place for place, text in enumerate(texts) if isinstance(text, str)]
    return [strings[start : start + most] for start in range(0, len(strings), most)] + [
        [place] for place, text in enumerate(texts) if not isinstance(text, str)
    ]


def _whole(texts: VariantTexts, *, takes_messages: bool) -> Iterator[Text]:
    """The texts of all variants, with their prompt."""
    prompt = texts.prompt
    for row in texts.coalitions.tolist():
        completion = "".join(compress(texts.units, row))
        if isinstance(prompt, str):
            yield prompt + completion
        elif takes_messages:
            last = (("role", "assistant"), ("content", completion))
            yield (*(tuple(message.items()) for message in prompt), last)
        else:
            raise ModelUnsuitableError("this model takes no chat messages; expected a prompt that is a string")


def _values(text: Text) -> Iterator[str]:
    if isinstance(text, str):
        yield text
    else:
        yield from (value for message in text for _, value in message)


def _is_encodable(text: Text) -> bool:
    try:
        "".join(_values(text)).encode()
    except UnicodeEncodeError:
        return False
    return True
