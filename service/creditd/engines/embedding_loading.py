"""From a directory to an embedding model that can be asked; what is unsuitable is said at boot.

Directories of sentence-transformers are read as they are; any other directory of a transformer needs the setting
`pooling`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from creditd.engines.chat import hash_of_tokenizer
from creditd.engines.directories import checked_path, weight_files
from creditd.engines.embedding_scorer import EmbeddingScorer
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.fingerprints import SourceFiles
from creditd.engines.memory import ForwardShape, batch_bytes, demand_room
from creditd.engines.model_files import bytes_of, load_files, longest_sequence
from creditd.engines.model_spec import ModelSpec, Pooling
from creditd.engines.numerics import numerics_of
from creditd.engines.reward_scorers import Variants
from creditd.engines.sentence_files import chosen_pooling, read_sentence_files

Integers: TypeAlias = NDArray[np.int64]

_PROBE = "a text"


class WholeTexts:
    """Texts as tokens, with the special tokens of the model and nothing before them: no prompt, no instruction.

    Attributes:
        identity: Hash of what decides how texts become tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, lowers: bool) -> None:
        """Take a tokenizer.

        Args:
            tokenizer: The model's.
            lowers: Whether texts are read in lower case.
        """
        self._tokenizer = tokenizer
        self._lowers = lowers
        # A tokenizer is changed by being used: one thread at a time.
        self._alone = threading.Lock()
        # Use also undoes the truncation and the padding that its file may ask for, which would be hashed.
        self.tokens([_PROBE])
        self.identity = hash_of_tokenizer(tokenizer, "lower case" if lowers else None)

    def tokens(self, texts: Sequence[str]) -> list[Integers]:
        """Token ids of each text, int64; nothing is cut."""
        if not texts:
            return []
        read = [text.lower() for text in texts] if self._lowers else list(texts)
        with self._alone:
            ids = self._tokenizer(read, add_special_tokens=True, padding=False, truncation=False)["input_ids"]
        return [np.asarray(row, dtype=np.int64) for row in ids]


@dataclass(frozen=True)
class LoadedEmbedding:
    """An embedding model in memory.

    Attributes:
        spec: As it was registered.
        model: In evaluation mode, on its device.
        text: How texts become its tokens.
        scorer: How it is asked.
        pooling: How one vector is made of the states of tokens.
        max_tokens: Longest sequence.
        n_dimensions: Entries H of a vector.
        n_bytes: Memory of its weights.
        forward_bytes: Most memory of one forward pass beside the weights.
        fingerprint: Digest of the files that it was loaded from, those of sentence-transformers among them.
        numerics: What decides the last bits of its vectors.
    """

    spec: ModelSpec
    model: PreTrainedModel
    text: WholeTexts
    scorer: EmbeddingScorer
    pooling: Pooling
    max_tokens: int
    n_dimensions: int
    n_bytes: int
    forward_bytes: int
    fingerprint: str
    numerics: str

    @property
    def reads_tries(self) -> bool:
        """Whether distinct prefixes are computed once: an encoder reads no tries."""
        return False

    @property
    def attention(self) -> str:
        """What runs its attention, as registrations name it."""
        return _attention(self.model)

    @property
    def is_remembered(self) -> bool:
        """Whether its vectors may be remembered."""
        return self.spec.is_remembered()


def load_embedding(spec: ModelSpec, root: Path) -> LoadedEmbedding:
    """Load an embedding model and ask it once.

    Args:
        spec: The model.
        root: Directory that all models are in.

    Returns:
        A model that answers. It reads no more tokens than the registration, the model's positions, its tokenizer and
        `max_seq_length` of sentence-transformers allow.

    Raises:
        ModelUnsuitableError: If it cannot serve; the message says what is wrong and what is expected.

    Cost:
        Reading the weights twice, of which once as `SourceFiles.fingerprint` does, and some tokens.
    """
    path = checked_path(spec, root)
    files = read_sentence_files(spec, path, root)
    pooling = chosen_pooling(spec, files)
    sources = SourceFiles.seen(path, [*weight_files(spec, path), *files.files])
    # Many encoders are saved without the layer on top of the first token that BERT was trained with.
    model, tokenizer = load_files(spec, path, AutoModel, attention=spec.attention, dispensable=("pooler.",))
    fingerprint = sources.fingerprint(spec)
    # Where its file says nothing this is some 1e30.
    longest = longest_sequence(spec, model, files.max_tokens, int(tokenizer.model_max_length))
    needed = batch_bytes(ForwardShape.of(model), most_tokens=spec.batch_tokens, longest=longest)
    try:
        demand_room(needed, most=spec.max_forward_bytes, device=model.device, lower="batch_tokens or max_tokens")
    except ModelUnsuitableError as error:
        raise ModelUnsuitableError(f"model {spec.id}: {error}") from error
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    text = WholeTexts(tokenizer, lowers=files.lowers)
    scorer = EmbeddingScorer(model, pooling, most_tokens=spec.batch_tokens, pad_id=pad_id)
    n_dimensions = _dimensions(spec, text, scorer)
    return LoadedEmbedding(
        spec=spec,
        model=model,
        text=text,
        scorer=scorer,
        pooling=pooling,
        max_tokens=longest,
        n_dimensions=n_dimensions,
        n_bytes=bytes_of(model),
        forward_bytes=needed,
        fingerprint=fingerprint,
        numerics=numerics_of(model, _attention(model), "batches", spec.batch_tokens),
    )


def _attention(model: PreTrainedModel) -> str:
    return str(model.config._attn_implementation)  # noqa: SLF001 - transformers has no other name for it


def _dimensions(spec: ModelSpec, text: WholeTexts, scorer: EmbeddingScorer) -> int:
    """Entries of a vector, of a text that every model can read."""
    try:
        vectors = scorer.score([Variants(tuple(text.tokens([_PROBE])))], lambda: None)[0]
    except Exception as error:
        # Architectures that are no encoder fail in ways of their own.
        raise ModelUnsuitableError(
            f"model {spec.id}: it gives no state for each token of a text ({type(error).__name__}); expected an encoder"
        ) from error
    if not np.isfinite(vectors).all():
        raise ModelUnsuitableError(
            f"model {spec.id}: its states are no finite numbers; expected other weights or dtype"
        )
    return int(vectors.shape[1])
