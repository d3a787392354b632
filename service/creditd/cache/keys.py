"""By which key a utility is remembered: everything that changes it, and nothing else. Pure functions.

A key is text: where it belongs, in words that an operator can search for, and 128 bits of a keyed BLAKE2b of the rest.

    creditd:1:model:MODEL:DIGEST      utilities that a model gave
    creditd:1:caller:DIGEST           utilities that callers of `/v1/credit/shapley/solve` supplied

Seed, estimator and budget are not in it: estimators share what is known of a game. Fields are written with their
lengths before they are hashed, so that no two lists of fields are the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

KEY_FORMAT = 1
"""Raised whenever the derivation of a key or the format of a value changes: the old ones are then never found."""
NAMESPACE = f"creditd:{KEY_FORMAT}"
DIGEST_BYTES = 16
_SECRET_BYTES = 32
_PERSON = b"creditd game 1"
_GAME = re.compile(rf"{NAMESPACE}:(?:model:.+|caller):(?P<digest>[0-9a-f]{{{2 * DIGEST_BYTES}}})")

Source: TypeAlias = Literal["model", "caller"]
CALLERS = "(callers)"
"""What purges and counters call the games of all callers: no model's id has parentheses."""
Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
"""A text, or chat messages with `role` and `content`."""


@dataclass(frozen=True)
class UtilitySource:
    """Whose utilities these are: what changes all of them at once.

    Attributes:
        tenant: Secret of whoever may see them, of `tenant_secret`; never readable in a key.
        source: Whether a model gave them or a caller.
        name: Id of the model, in the readable part of the key; empty for a caller's.
        identity: Everything that decides a utility beside the texts: of a model its revision, type of weights, their
            digest, tokenizer, template and head; of a caller the `utility_id`.
        weight_version: Of a model whose weights are replaced while it is served; empty where they are not.
        rendering: How a coalition becomes what is judged: what stands for absent units.
        generation: Token of the last purge; whatever was remembered before it is not found.
        numerics: What decides the last bits beside all that; empty where rounding does not matter.
    """

    tenant: bytes
    source: Source
    name: str
    identity: str
    weight_version: str = ""
    rendering: str = "delete"
    generation: str = ""
    numerics: str = ""

    @property
    def prefix(self) -> str:
        """The readable beginning of its keys, with the colon behind it."""
        return model_prefix(self.name) if self.source == "model" else CALLER_PREFIX

    @property
    def owner(self) -> str:
        """Whose utilities are purged together with these: the model's id, or `CALLERS`."""
        return self.name if self.source == "model" else CALLERS


@dataclass(frozen=True, slots=True)
class GameKey:
    """The key of one game.

    Attributes:
        text: As Redis has it.
        check: The first bytes of its digest, which stand in the value as well.
    """

    text: str
    check: bytes

    def __hash__(self) -> int:
        return hash(self.text)

    @classmethod
    def of(cls, text: str) -> GameKey:
        """The key that has this text.

        Raises:
            ValueError: If it is the key of no game.
        """
        found = _GAME.fullmatch(text)
        if found is None:
            raise ValueError(f"got no key of a game; expected {NAMESPACE}:model:MODEL:DIGEST or {NAMESPACE}:caller:…")
        return cls(text, bytes.fromhex(found["digest"])[:CHECK_BYTES])


CHECK_BYTES = 8
CALLER_PREFIX = f"{NAMESPACE}:caller:"
"""Beginning of the keys of all utilities that callers supplied."""


def model_prefix(model: str) -> str:
    """Beginning of the keys of all utilities that a model gave."""
    return f"{NAMESPACE}:model:{model}:"


def purge_key(owner: str) -> str:
    """Key of the token that the last purge of a model's utilities left, or that of all callers': see `CALLERS`."""
    return f"{NAMESPACE}:purged:{owner}"


def tenant_secret(service_secret: bytes, api_key: bytes) -> bytes:
    """What separates one caller's keys from another's.

    Args:
        service_secret: Of the replicas that share utilities; may be empty, then the API key alone is secret.
        api_key: What the caller showed, or its digest; empty where no keys are configured.

    Returns:
        32 bytes. Who knows neither argument can tell from a key neither the texts nor the caller, nor try out guesses.
    """
    first = hashlib.blake2b(service_secret, digest_size=_SECRET_BYTES, person=b"creditd service").digest()
    return hashlib.blake2b(api_key, key=first, digest_size=_SECRET_BYTES, person=b"creditd tenant").digest()


class KeyMaker:
    """Keys of the games of one source.

    Attributes:
        source: Whose utilities these are.
    """

    def __init__(self, source: UtilitySource) -> None:
        """Hash what all keys share.

        Args:
            source: Whose utilities these are.
        """
        self.source = source
        self._prefix = source.prefix
        self._shared = hashlib.blake2b(digest_size=DIGEST_BYTES, key=source.tenant, person=_PERSON)
        fields = (
            source.source,
            source.name,
            source.identity,
            source.weight_version,
            source.rendering,
            source.generation,
            source.numerics,
        )
        self._shared.update(_joined(map(_bytes, fields)))
        self._last = b"", self._with_prompt(b"")

    def game(self, prompt: bytes, units: Sequence[str], asked: bytes = b"") -> GameKey:
        """The key of the games that are made of the same units.

        Args:
            prompt: Of `prompt_bytes`.
            units: The players' texts, or their names, in the order in which coalitions count them. Where the order of
                candidates is nothing to the utility, whoever asks sorts them: then no permutation changes the key.
            asked: For a value that holds for one list of coalitions alone: that list.

        Returns:
            A key; different for different arguments.

        Cost:
            Half a microsecond, and a nanosecond for each byte.
        """
        last, hashed = self._last
        if prompt != last:
            hashed = self._with_prompt(prompt)
            self._last = prompt, hashed
        digest = hashed.copy()
        digest.update(_joined([asked, *_all_bytes(units)]))
        found = digest.digest()
        return GameKey(self._prefix + found.hex(), found[:CHECK_BYTES])

    def _with_prompt(self, prompt: bytes) -> hashlib.blake2b:
        """What keys with this prompt share; games of one prompt come one after another."""
        digest = self._shared.copy()
        digest.update(_joined([prompt]))
        return digest


def prompt_bytes(prompt: Prompt) -> bytes:
    """A prompt as keys hash it: a text and messages are never the same."""
    if isinstance(prompt, str):
        return b"t" + _bytes(prompt)
    fields = (_joined(_bytes(part) for item in sorted(message.items()) for part in item) for message in prompt)
    return b"m" + _joined(fields)


def _joined(fields: Iterable[bytes]) -> bytes:
    """Fields one after another, each behind its length."""
    parts: list[bytes] = []
    for field in fields:
        parts += (len(field).to_bytes(8, "little"), field)
    return b"".join(parts)


def _bytes(text: str) -> bytes:
    """A text's bytes; JSON can carry halves of surrogate pairs."""
    return text.encode("utf-8", "surrogatepass")


def _all_bytes(texts: Sequence[str]) -> list[bytes]:
    """Texts' bytes, in half the time where no text has half a surrogate pair."""
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError:
        return [_bytes(text) for text in texts]
