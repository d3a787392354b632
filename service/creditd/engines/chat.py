"""Prompts and completions as the tokens that a reward model reads.

A prompt that is a string is read as it is, with the completion behind it. A prompt of chat messages goes through the
chat template, with the completion as the assistant's last message.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from creditd.engines.coalition_tokens import CoalitionTokens, coalition_tokens
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.fingerprints import digest_of
from creditd.engines.protocol import Prompt, VariantTexts
from creditd.engines.unit_tokens import places_of_characters

Integers: TypeAlias = NDArray[np.int64]

_MARK = "\u2060creditd\u2060"
"""Stands for the completion where the text around it is looked for."""
_LETTERS = "ab"
"""Stand around a token whose text is looked for."""
_SYSTEM = {"role": "system", "content": "a rule"}
_PROBE = ({"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"})


@dataclass(frozen=True)
class _Frame:
    """What a model reads around every completion of a prompt.

    Attributes:
        head: Special tokens before everything.
        before: Text before the completion.
        after: Text behind it.
        tail: Special tokens behind everything.
    """

    head: Integers
    before: str
    after: str
    tail: Integers


@dataclass(frozen=True)
class ReadText:
    """A prompt with a completion as a model reads it.

    Attributes:
        tokens: Shape (T,), int64: token ids.
        offsets: Shape (T, 2), int64: the characters of the text that each was read from, half-open.
        places: Shape (characters,), int64: where each character of the text stands in the completion; −1: it is of the
            prompt or the template.
    """

    tokens: Integers
    offsets: Integers
    places: Integers


class ChatText:
    """Renders prompts and completions for one model.

    Attributes:
        template: What renders chat messages; None where none does.
        identity: Hash of what decides how texts become tokens: the template and the tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        """Try the template, so that a request does not find out that it lacks a role.

        Args:
            tokenizer: The model's.
            template: Instead of the tokenizer's own, or None.

        Raises:
            ModelUnsuitableError: If the template cannot render a user's and an assistant's message, or leaves one out.
        """
        self._tokenizer = tokenizer
        # A tokenizer is changed by being used: one thread at a time.
        self._alone = threading.Lock()
        self.template = _one_of(getattr(tokenizer, "chat_template", None)) if template is None else template
        if self.has_template:
            self._try()
        self._special = self._special_tokens()
        self.identity = hash_of_tokenizer(tokenizer, self.template)

    @property
    def tells_characters(self) -> bool:
        """Whether the tokenizer tells the characters of its tokens."""
        return bool(self._tokenizer.is_fast)

    @property
    def has_template(self) -> bool:
        """Whether prompts may be chat messages."""
        return self.template is not None

    def tokens(self, prompt: Prompt, completion: str, *, special: bool = True) -> Integers:
        """The tokens of a prompt with a completion.

        Args:
            prompt: A string, or chat messages.
            completion: What the policy wrote.
            special: Whether the tokenizer adds its special tokens around a prompt that is a string.

        Returns:
            Token ids, int64.

        Raises:
            ModelUnsuitableError: If the prompt has messages and the model no template, or one that refuses them.
        """
        if isinstance(prompt, str):
            return self._ids(prompt + completion, special=special)
        # The template writes special tokens itself.
        return self._ids(self._with_completion(prompt, completion), special=False)

    def variants(self, texts: VariantTexts, checkpoint: Callable[[], None] = lambda: None) -> CoalitionTokens:
        """The tokens of a prompt with each of its completions.

        Args:
            texts: The prompt, and units with their coalitions.
            checkpoint: Called now and then; what it raises ends the work.

        Returns:
            What `tokens` gives for each completion, with each unit tokenised once wherever that is the same.

        Raises:
            ModelUnsuitableError: As `tokens`.

        Cost:
            Tokenises each unit and each pair of units that meet; one text by itself is tokenised once. A template is
            rendered for every variant, some 50 µs each, because what it does with a text may depend on the text.
        """
        prompt, units = texts.prompt, texts.units

        def whole(completion: str) -> Integers:
            return self.tokens(prompt, completion, special=texts.adds_special_tokens)

        # Units that meet no other one are tokenised fewer times as wholes.
        meets = len(texts.coalitions) > 1 and texts.coalitions.sum(axis=1).max(initial=0) > 1
        frame = self._frame(prompt, special=texts.adds_special_tokens) if meets else None
        if frame is None:
            found = []
            for row in texts.coalitions.tolist():
                checkpoint()
                found.append(whole("".join(itertools.compress(units, row))))
            return CoalitionTokens(tuple(found), np.zeros(len(found), dtype=np.bool_))

        def framed(completion: str) -> bool:
            if isinstance(prompt, str):
                return True
            return self._with_completion(prompt, completion) == f"{frame.before}{completion}{frame.after}"

        return coalition_tokens(
            lambda text: self._ids(text, special=False),
            frame.before,
            units,
            frame.after,
            texts.coalitions,
            whole=whole,
            head=frame.head,
            tail=frame.tail,
            framed=framed,
            checkpoint=checkpoint,
        )

    def read(self, prompt: Prompt, completion: str) -> ReadText:
        """The tokens of a prompt with a completion, and the characters that each was read from.

        Args:
            prompt: A string, or chat messages.
            completion: What the policy wrote.

        Returns:
            The tokens that `tokens` gives.

        Raises:
            ModelUnsuitableError: As `tokens`; and if the tokenizer does not tell the characters of its tokens, or the
                chat template shows the completion otherwise than by its letters, one after another.
        """
        if not self.tells_characters:
            raise ModelUnsuitableError("the tokenizer does not tell the characters of its tokens; expected a fast one")
        places: Integers | None = None
        if isinstance(prompt, str):
            text = prompt + completion
            places = places_of_characters(text, prompt, completion, "")
        else:
            text, frame = self._with_completion(prompt, completion), self._frame(prompt)
            if frame is not None:
                places = places_of_characters(text, frame.before, completion, frame.after)
        if places is None:
            raise ModelUnsuitableError(
                "the chat template does not show the completion as it is; its parts are not found"
            )
        with self._alone:
            # The template writes special tokens itself.
            found = self._tokenizer(text, add_special_tokens=isinstance(prompt, str), return_offsets_mapping=True)
        offsets = np.asarray(found["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return ReadText(np.asarray(found["input_ids"], dtype=np.int64), offsets, places)

    def token_text(self, token_id: int) -> str:
        """The text that is read as exactly one token, whatever stands around it.

        Args:
            token_id: Its number.

        Returns:
            What it is called. So are special tokens, and others that were added to a vocabulary, read before anything
            else of a text; what any other one writes may be read together with its neighbours.

        Raises:
            ModelUnsuitableError: If there is no such token, or it is none of these, or is one that is read as it
                between spaces alone.

        Cost:
            Some texts of a few letters.
        """
        tokenizer = self._tokenizer
        if not 0 <= token_id < len(tokenizer):
            raise ModelUnsuitableError(
                f"got token {token_id}; expected one of the tokenizer's 0 to {len(tokenizer) - 1}"
            )
        added = tokenizer.added_tokens_decoder.get(token_id)
        if added is None or not self._is_read_alone(str(added), token_id):
            raise ModelUnsuitableError(
                f"token {token_id} has no text that is read as it alone wherever it stands; expected a special token, "
                "such as the one for masks or for what is unknown, or a text"
            )
        return str(added)

    def _is_read_alone(self, text: str, token_id: int) -> bool:
        """Whether a text is one token by itself, at the beginning, at the end, and between others."""

        def ids(*parts: str) -> list[int]:
            found: list[int] = self._ids("".join(parts), special=False).tolist()
            return found

        first = ids(text, _LETTERS)
        return (
            (ids(text), first[:1]) == ([token_id], [token_id])
            and ids(_LETTERS, text) == [*ids(_LETTERS), token_id]
            and ids(_LETTERS, text, _LETTERS) == [*ids(_LETTERS), *first]
        )

    def _frame(self, prompt: Prompt, *, special: bool = True) -> _Frame | None:
        """What stands around every completion of a prompt; None where that cannot be told."""
        nothing = np.empty(0, dtype=np.int64)
        if isinstance(prompt, str):
            head, tail = (self._special or (None, None)) if special else (nothing, nothing)
            return None if head is None or tail is None else _Frame(head, prompt, "", tail)
        around = self._with_completion(prompt, _MARK).split(_MARK)
        return _Frame(nothing, around[0], around[1], nothing) if len(around) == 2 else None

    def _ids(self, text: str, *, special: bool) -> Integers:
        with self._alone:
            return np.asarray(self._tokenizer(text, add_special_tokens=special)["input_ids"], dtype=np.int64)

    def _special_tokens(self) -> tuple[Integers, Integers] | None:
        """Special tokens before and behind every text; None if they are not told apart from its own."""
        plain, full = self._ids("a", special=False), self._ids("a", special=True)
        n_more = len(full) - len(plain)
        fits = [at for at in range(n_more + 1) if np.array_equal(full[at : at + len(plain)], plain)]
        return (full[: fits[0]], full[fits[0] + len(plain) :]) if len(fits) == 1 and len(plain) else None

    def _with_completion(self, prompt: Sequence[Mapping[str, str]], completion: str) -> str:
        if not self.has_template:
            raise ModelUnsuitableError("this model has no chat template; expected a prompt that is a string")
        try:
            return self._rendered([*prompt, {"role": "assistant", "content": completion}])
        except Exception as error:
            # Templates refuse messages with exceptions of their own; their words may be the caller's.
            raise ModelUnsuitableError(
                "the model's chat template refuses these messages; expected roles, and an order of them, that it takes"
            ) from error

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        options: dict[str, Any] = {"chat_template": self.template, "tokenize": False, "add_generation_prompt": False}
        return str(self._tokenizer.apply_chat_template([dict(message) for message in messages], **options))

    def _try(self) -> None:
        """Render a conversation; some templates need a message of the system first."""
        try:
            text = self._rendered(_PROBE)
        except Exception:  # noqa: BLE001 - templates refuse messages with exceptions of their own
            try:
                text = self._rendered((_SYSTEM, *_PROBE))
            except Exception as error:
                raise ModelUnsuitableError(
                    f"the chat template cannot render a user's and an assistant's message: {type(error).__name__}"
                ) from error
        missing = [message["role"] for message in _PROBE if message["content"] not in text]
        if missing:
            raise ModelUnsuitableError(f"the chat template leaves out the messages of {' and '.join(missing)}")


def _one_of(templates: str | Mapping[str, str] | None) -> str | None:
    """The template of a tokenizer; of several named ones the default, as transformers takes it."""
    if templates is None or isinstance(templates, str):
        return templates
    if "default" not in templates:
        raise ModelUnsuitableError(
            f"the tokenizer has the chat templates {', '.join(sorted(templates))}; expected one called default, or the "
            "setting chat_template"
        )
    return templates["default"]


def hash_of_tokenizer(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """Hash of what decides how texts become tokens.

    Args:
        tokenizer: As it is used.
        template: What else decides it.

    Returns:
        The same for the same tokenizer, in hexadecimal digits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [_files_of(tokenizer)] if backend is None else [backend.to_str().encode()]
    # A template may write special tokens by their roles.
    roles = repr(sorted(tokenizer.special_tokens_map.items()))
    parts += [part.encode() for part in (type(tokenizer).__name__, roles, template or "")]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _files_of(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """What a tokenizer that is written in Python was made of: its vocabulary does not say how words are cut."""
    folder = Path(tokenizer.name_or_path)
    names = ("tokenizer_config.json", *tokenizer.vocab_files_names.values())
    files = [folder / name for name in names if (folder / name).is_file()]
    return (repr(sorted(tokenizer.get_vocab().items())) + digest_of(folder, files)).encode()
