"""Prompts and completions as the tokens that a reward model reads.

A prompt that is a string is read as it is, with the completion behind it. A prompt of chat messages goes through the
chat template, with the completion as the assistant's last message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from creditd.engines.errors import ModelUnsuitableError

Integers: TypeAlias = NDArray[np.int64]
Prompt: TypeAlias = str | Sequence[Mapping[str, str]]

_PROBE = ({"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"})


class ChatText:
    """Renders prompts and completions for one model.

    Attributes:
        has_template: Whether prompts may be chat messages.
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
        self._template = template if template is not None else getattr(tokenizer, "chat_template", None)
        self.has_template = self._template is not None
        if self.has_template:
            self._try()
        self.identity = _hash_of(tokenizer, self._template)

    def tokens(self, prompt: Prompt, completion: str) -> Integers:
        """The tokens of a prompt with a completion.

        Args:
            prompt: A string, or chat messages.
            completion: What the policy wrote.

        Returns:
            Token ids, int64.

        Raises:
            ModelUnsuitableError: If the prompt has messages and the model no template.
        """
        if isinstance(prompt, str):
            ids = self._tokenizer(prompt + completion)["input_ids"]
            return np.asarray(ids, dtype=np.int64)
        if not self.has_template:
            raise ModelUnsuitableError("this model has no chat template; expected a prompt that is a string")
        text = self._rendered([*prompt, {"role": "assistant", "content": completion}])
        # The template writes special tokens itself.
        return np.asarray(self._tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        options: dict[str, Any] = {"chat_template": self._template, "tokenize": False, "add_generation_prompt": False}
        return str(self._tokenizer.apply_chat_template([dict(message) for message in messages], **options))

    def _try(self) -> None:
        try:
            text = self._rendered(_PROBE)
        except Exception as error:
            raise ModelUnsuitableError(
                f"the chat template cannot render a user's and an assistant's message: {type(error).__name__}"
            ) from error
        missing = [message["role"] for message in _PROBE if message["content"] not in text]
        if missing:
            raise ModelUnsuitableError(f"the chat template leaves out the messages of {' and '.join(missing)}")


def _hash_of(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    for part in (type(tokenizer).__name__, vocabulary, template or ""):
        digest.update(len(part).to_bytes(8, "little") + part.encode())
    return digest.hexdigest()
