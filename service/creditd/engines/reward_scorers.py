"""Reward models as the batcher sees them: by the trie of what is asked, or by batches of equal length.

Causal models read a trie: every distinct prefix is computed once. Bidirectional ones, and causal ones whose attention
cannot take a mask of any shape, get distinct sequences sorted by length, as many at a time as the budget of tokens has
room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from creditd.engines.model_spec import HeadChoice
from creditd.engines.padded_batches import length_batches, padded
from creditd.engines.reward_head import RewardHead
from creditd.engines.trie import Trie, build_trie, joined
from creditd.engines.trie_forward import leaf_states
from creditd.engines.trie_masks import DenseMasks, Masks

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


_LEAST_ROUNDING, _ROUNDING_STEPS = 1e-4, 4
"""Share of the largest state, and steps of the model's type, up to which a difference is rounding."""


@dataclass(frozen=True)
class Variants:
    """Token sequences to score, as they are asked.

    Attributes:
        sequences: V ≥ 1 arrays of token ids, int64, none of them empty.
    """

    sequences: tuple[Integers, ...]

    @cached_property
    def trie(self) -> Trie:
        """Their distinct prefixes."""
        return build_trie(self.sequences)

    @cached_property
    def distinct(self) -> tuple[list[Integers], Integers]:
        """Different sequences, and which of them each one is."""
        numbers: dict[bytes, int] = {}
        kept: list[Integers] = []
        places = np.empty(len(self.sequences), dtype=np.int64)
        for place, sequence in enumerate(self.sequences):
            number = numbers.setdefault(sequence.tobytes(), len(kept))
            if number == len(kept):
                kept.append(sequence)
            places[place] = number
        return kept, places

    @property
    def n_naive(self) -> int:
        """Tokens of all sequences, repetitions included."""
        return sum(map(len, self.sequences))


class TrieScorer:
    """A causal reward model that reads tries.

    Attributes:
        choice: Which number of its head is the reward.
        backbone: The model without its head.
        most_nodes: Most tokens of one forward pass.
        masks: Who sees whom, in the form that its attention takes.
    """

    def __init__(
        self, model: PreTrainedModel, choice: HeadChoice, *, most_nodes: int, masks: Masks | None = None
    ) -> None:
        """Take a loaded model.

        Args:
            model: For sequence classification, causal, in evaluation mode.
            choice: Which number of its head is the reward.
            most_nodes: Most tokens of one forward pass.
            masks: In the form that its attention takes. None: a cell for each two nodes.
        """
        self.backbone = model.base_model
        self.choice = choice
        self._head = RewardHead(model, choice)
        self.most_nodes = most_nodes
        self.masks: Masks = masks or DenseMasks.of(self.backbone)

    def n_tokens(self, work: Variants) -> int:
        """Distinct prefixes."""
        return len(work.trie)

    def order(self, work: Variants) -> tuple[Integers, Integers]:
        """Sequences in the order in which they are cheapest together, shape (V,), and the tokens that each adds."""
        order = np.argsort(work.trie.leaves, kind="stable")
        return order, np.diff(work.trie.leaves[order] + 1, prepend=0)

    def score(self, works: Sequence[Variants], beat: Callable[[], None]) -> list[Floats]:
        """Rewards of the sequences of each work, in their order."""
        found = leaf_states(
            self.backbone,
            joined([work.trie for work in works]),
            most_nodes=self.most_nodes,
            masks=self.masks,
            read=lambda states: self._head.module(states.float()),
            beat=beat,
        )
        splits = np.cumsum([len(work.sequences) for work in works])[:-1]
        return np.split(self._head.of_logits(found.states), splits)


class LengthScorer:
    """A reward model of any kind, by padded batches of sequences of nearly equal length.

    Attributes:
        choice: Which number of its head is the reward.
    """

    def __init__(self, model: PreTrainedModel, choice: HeadChoice, *, most_tokens: int, pad_id: int) -> None:
        """Take a loaded model.

        Args:
            model: For sequence classification, in evaluation mode.
            choice: Which number of its head is the reward.
            most_tokens: Most tokens of one forward pass, padding included.
            pad_id: Fills up what is shorter; masked, so any token does.
        """
        self._model = model
        self.choice = choice
        self._head = RewardHead(model, choice)
        self._most_tokens = most_tokens
        self._pad_id = pad_id
        self._causal = is_causal(model)
        self._turn = length_turn(model)

    def n_tokens(self, work: Variants) -> int:
        """Tokens of the distinct sequences."""
        return sum(map(len, work.distinct[0]))

    def order(self, work: Variants) -> tuple[Integers, Integers]:
        """Sequences by length, copies together, shape (V,), and the tokens that each adds."""
        lengths = np.array(list(map(len, work.sequences)))
        numbers = work.distinct[1]
        order = np.lexsort((numbers, lengths))
        copies = np.diff(numbers[order], prepend=-1) == 0
        return order, np.where(copies, 0, lengths[order])

    def score(self, works: Sequence[Variants], beat: Callable[[], None]) -> list[Floats]:
        """Rewards of the sequences of each work, in their order."""
        sequences = [sequence for work in works for sequence in work.distinct[0]]
        rewards = np.empty(len(sequences))
        for batch in self.batches(sequences):
            beat()
            rewards[batch] = self._head(self.read_states([sequences[place] for place in batch]))
        splits = np.cumsum([len(work.distinct[0]) for work in works])[:-1]
        parts = np.split(rewards, splits)
        return [part[work.distinct[1]] for part, work in zip(parts, works, strict=True)]

    def batches(self, sequences: list[Integers]) -> Iterator[list[int]]:
        """Places of sequences that are run together."""
        return length_batches(sequences, self._most_tokens, self._turn)

    def read_states(self, sequences: list[Integers]) -> torch.Tensor:
        """One pass of the model: the states that its head reads, a row for each sequence."""
        tokens, present = padded(sequences, self._pad_id, self._model.device)
        with torch.inference_mode():
            if self._causal:
                # Nothing comes after: keys and values of every layer would be kept for nobody.
                hidden = self._model.base_model(
                    input_ids=tokens, attention_mask=present, use_cache=False
                ).last_hidden_state
                last = present.sum(dim=1) - 1
                return hidden[torch.arange(len(sequences), device=hidden.device), last]
            return self._seen_by_the_head(tokens, present)

    def _seen_by_the_head(self, tokens: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """What the model gives to its own head, after whatever pooling it has."""
        seen: list[torch.Tensor] = []
        handle = self._head.original.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self._model(input_ids=tokens, attention_mask=present)
        finally:
            handle.remove()
        return seen[0]


def is_causal(model: PreTrainedModel) -> bool:
    """Whether each token sees those before it alone: the heads of such models read the last one.

    Args:
        model: For sequence classification.

    Returns:
        Whether changing all tokens but the first leaves the state of the first one as it is, but for rounding: experts
        that are chosen by all tokens of a pass change its last bits.

    Cost:
        Two forward passes of a few tokens.
    """
    with torch.inference_mode():
        # In passes of their own: rows of one pass may be rounded otherwise, by the place that they have in it.
        first, second = (
            model.base_model(
                input_ids=(row := torch.tensor([[1, *tokens]], device=model.device)),
                attention_mask=torch.ones_like(row),
            )
            .last_hidden_state[:, 0]
            .float()
            for tokens in ((2, 3, 4, 5, 6), (6, 5, 7, 3, 8))
        )
    rounding = max(_LEAST_ROUNDING, _ROUNDING_STEPS * torch.finfo(model.dtype).eps)
    return bool((first - second).abs().max() <= rounding * first.abs().max())


def read_part(sequence: Integers, pad_id: int | None) -> Integers:
    """The tokens of a sequence up to the one whose state a causal model's head reads.

    Transformers' models for sequence classification read the last token that is not padding, whatever the mask says: of
    a text that ends with the padding token itself they read the one before.

    Args:
        sequence: Token ids, at least one.
        pad_id: The padding token of the model's configuration. None: the last token is read.

    Returns:
        A beginning of the sequence; the first token of one that has nothing else.
    """
    if pad_id is None or sequence[-1] != pad_id:
        return sequence
    others = np.flatnonzero(sequence != pad_id)
    return sequence[: int(others[-1]) + 1] if len(others) else sequence[:1]


def sliced(scorer: TrieScorer | LengthScorer, work: Variants, most_tokens: int) -> tuple[list[Variants], Integers]:
    """Sequences in slices that are run one at a time, so that others have their turn between.

    Args:
        scorer: What they are for; sequences that are cheap together stay together.
        work: V sequences.
        most_tokens: Tokens from which a slice is full.

    Returns:
        The slices, and which sequence each one in them is, shape (V,), int64, slice after slice.

    Cost:
        Prefixes that two slices share are computed in both: at most one sequence per slice.
    """
    if scorer.n_tokens(work) <= most_tokens:
        return [work], np.arange(len(work.sequences))
    order, added = scorer.order(work)
    numbers = (np.cumsum(added) - 1) // most_tokens
    cuts = np.flatnonzero(np.diff(numbers)) + 1
    parts = np.split(order, cuts)
    return [Variants(tuple(work.sequences[place] for place in part.tolist())) for part in parts], order


def length_turn(model: PreTrainedModel) -> int | None:
    """The length beyond which a model turns all positions of a pass otherwise, by its configuration.

    Args:
        model: Any.

    Returns:
        The length, or None if positions do not depend on it: LongRoPE has other factors for long texts.

    Cost:
        O(1).
    """
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(original) if original and rope.get("rope_type") == "longrope" else None
