"""How much each token of a text counts where a reward model reads its reward: one row of the last layer's attention.

A causal model's head reads the last token, and that of most encoders the first one. Which position it is, and whether
the row is the one that transformers itself gives, is found out when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.last_attention import LastAttention, Seen
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants
from creditd.engines.trie import Chunk, Trie, intervals_of, joined
from creditd.engines.trie_forward import leaf_states

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Beat: TypeAlias = Callable[[], None]

_PROBE = 5
_LENGTHS = (2, 7, 40)
_LEAST_ERROR, _ALLOWED_STEPS = 1e-5, 8
"""What the weights of a row may differ by: by rounding of float32 through some layers, and by steps of other types."""


class AttentionReader(Protocol):
    """Rows of attention as the batcher asks for them."""

    def rows(self, works: Sequence[Variants], beat: Beat) -> list[list[Floats]]:
        """For each sequence of each work the weight of each of its tokens, of sum 1.

        Args:
            works: Token sequences.
            beat: Called before each forward pass.
        """


class TrieAttention:
    """Rows of a causal model that reads tries: every distinct prefix is computed once, in passes as for scores."""

    def __init__(self, scorer: TrieScorer, last: LastAttention) -> None:
        """Take what scores are read by.

        Args:
            scorer: Its passes are those of its scores.
            last: The attention of the model.
        """
        self._scorer, self._last = scorer, last

    def rows(self, works: Sequence[Variants], beat: Beat) -> list[list[Floats]]:
        """Attention of the last token to every token up to it; as `AttentionReader.rows`."""
        trie = joined([work.trie for work in works])
        leaves, scorer = np.unique(trie.leaves), self._scorer
        chunks: list[Chunk] = []
        found: dict[int, Floats] = {}

        def masks(trie: Trie, chunk: Chunk) -> torch.Tensor | BlockMask:
            # Asked for right before each pass.
            chunks.append(chunk)
            return scorer.masks(trie, chunk)

        def look(seen: Seen) -> None:
            chunk = chunks[-1]
            intervals = intervals_of(trie, chunk)
            for leaf in leaves[slice(*np.searchsorted(leaves, [chunk.start, chunk.stop]))].tolist():
                place = leaf - chunk.start
                # Keys of ancestors stand in the order of their depths.
                keys = np.flatnonzero((intervals.begins <= place) & (place < intervals.ends))
                found[leaf] = seen.row(0, place, keys)

        with self._last.watched(look):
            leaf_states(
                scorer.backbone,
                trie,
                most_nodes=scorer.most_nodes,
                masks=masks,
                read=lambda states: states[:, :0],
                beat=beat,
            )
        rows = iter([found[leaf] for leaf in trie.leaves.tolist()])
        return [[next(rows) for _ in work.sequences] for work in works]


class LengthAttention:
    """Rows of a model that is asked by padded batches."""

    def __init__(self, scorer: LengthScorer, last: LastAttention, *, first: bool) -> None:
        """Take what scores are read by.

        Args:
            scorer: Its batches are those of its scores.
            last: The attention of the model.
            first: Whether the head reads the first token; else it reads the last one.
        """
        self._scorer, self._last, self._first = scorer, last, first

    def rows(self, works: Sequence[Variants], beat: Beat) -> list[list[Floats]]:
        """Attention of the token that the head reads to all; as `AttentionReader.rows`."""
        sequences = [sequence for work in works for sequence in work.distinct[0]]
        found: dict[int, Floats] = {}
        for batch in self._scorer.batches(sequences):
            beat()
            found.update(zip(batch, self._forward([sequences[place] for place in batch]), strict=True))
        rows, start = [], 0
        for work in works:
            rows.append([found[start + number] for number in work.distinct[1].tolist()])
            start += len(work.distinct[0])
        return rows

    def _forward(self, sequences: list[Integers]) -> list[Floats]:
        found: list[Floats] = []

        def look(seen: Seen) -> None:
            for row, sequence in enumerate(sequences):
                found.append(seen.row(row, 0 if self._first else len(sequence) - 1, np.arange(len(sequence))))

        with self._last.watched(look):
            self._scorer.read_states(sequences)
        return found


def attention_reader(model: PreTrainedModel, scorer: TrieScorer | LengthScorer, *, longest: int) -> AttentionReader:
    """What reads a model's attention, once it is known to read it rightly.

    Args:
        model: For sequence classification, in evaluation mode.
        scorer: How it is asked for scores.
        longest: Longest sequence that it reads.

    Raises:
        ModelUnsuitableError: If its head reads several positions, or its attention is not found, or the rows that are
            found are not those that transformers gives; the message says which.

    Cost:
        Some hundred tokens, a few of them backwards.
    """
    last = LastAttention.of(model)
    n_tokens = min(_PROBE, longest)
    read = _read_positions(model, last, n_tokens)
    if read not in ([0], [n_tokens - 1]):
        raise ModelUnsuitableError(
            f"its head reads {len(read)} of {n_tokens} positions; expected the first or the last alone"
        )
    first = read == [0]
    if isinstance(scorer, TrieScorer):
        reader: AttentionReader = TrieAttention(scorer, last)
    else:
        reader = LengthAttention(scorer, last, first=first)
    _check(model, reader, last, longest=longest, first=first)
    return reader


def _read_positions(model: PreTrainedModel, last: LastAttention, n_tokens: int) -> list[int]:
    """Positions at which the last layer's attention changes the scores."""
    states: list[torch.Tensor] = []

    def held(_module: torch.nn.Module, _inputs: Any, outputs: Any) -> Any:  # noqa: ANN401 - a model's own
        states.append(outputs[0].detach().requires_grad_())
        return (states[-1], *outputs[1:])

    tokens = torch.tensor([_tokens(model, n_tokens)], device=model.device)
    handle = last.module.register_forward_hook(held)
    try:
        with torch.enable_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
            (gradient,) = torch.autograd.grad(logits.float().sum(), states[-1])
    finally:
        handle.remove()
    found: list[int] = torch.nonzero(gradient[0].abs().amax(dim=-1)).flatten().tolist()
    return found


def _tokens(model: PreTrainedModel, n_tokens: int) -> list[int]:
    """Different tokens, none of which is padding."""
    pad_id = model.config.get_text_config().pad_token_id
    return [token for token in range(1, n_tokens + 2) if token != pad_id][:n_tokens]


def _check(model: PreTrainedModel, reader: AttentionReader, last: LastAttention, *, longest: int, first: bool) -> None:
    """Compare rows of random texts with those that transformers gives.

    Raises:
        ModelUnsuitableError: If they differ by more than rounding, or there are none.
    """
    random, vocabulary = np.random.default_rng(0), int(model.get_input_embeddings().num_embeddings)
    texts = [random.integers(1, vocabulary, min(length, longest)) for length in _LENGTHS]
    found = reader.rows([Variants(tuple(texts))], lambda: None)[0]
    original = model.config._attn_implementation  # noqa: SLF001 - transformers has no other name for it
    if last.is_told:
        model.set_attn_implementation("eager")
    try:
        expected = [_own_row(model, text, 0 if first else -1) for text in texts]
    finally:
        if last.is_told:
            model.set_attn_implementation(original)
    allowed = max(_LEAST_ERROR, _ALLOWED_STEPS * torch.finfo(model.dtype).eps)
    error = max(float(np.abs(own - row).max()) for own, row in zip(expected, found, strict=True))
    if not error <= allowed:
        raise ModelUnsuitableError(
            f"its attention is not what is found of its last layer: weights differ by {error:.2g}; expected at most "
            f"{allowed:.2g}"
        )


def _own_row(model: PreTrainedModel, text: Integers, position: int) -> Floats:
    """What transformers says of one text, from a table of positions by positions."""
    tokens = torch.from_numpy(text)[None].to(model.device)
    with torch.inference_mode():
        said = model.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_attentions=True)
    if not said.attentions:
        raise ModelUnsuitableError("transformers gives no attention of it")
    row: Floats = said.attentions[-1][0, :, position].double().mean(dim=0).cpu().numpy()
    return row
