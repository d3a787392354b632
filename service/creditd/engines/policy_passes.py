"""Passes of a policy over rows that go on from the same beginnings, read where the answer is predicted.

Legend: `B` rows, `L` tokens of each, `p` tokens before them, `H` width of the states, `D` of what is returned.

Rows have equal lengths but for filling at their ends, which no token before it sees, so that no mask is needed but the
model's own: windows, caps and positions of any kind stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

Integers: TypeAlias = NDArray[np.int64]


class Ask(Protocol):
    """A forward pass."""

    def __call__(
        self, tokens: torch.Tensor, places: torch.Tensor, past: DynamicCache | None, columns: torch.Tensor
    ) -> torch.Tensor:
        """What is returned for some columns.

        Args:
            tokens: Shape (B, L), int64.
            places: Shape (1, L) or (B, L), int64: positions.
            past: Keys and values of the tokens before; the pass leaves its own there. None: none are kept.
            columns: Shape (k,), int64: columns that are read.

        Returns:
            Shape (B, k, D).
        """


class _KnownLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of a beginning that rows share; those of a pass are seen and forgotten."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_args: Any,  # noqa: ANN401 - whatever else a version of transformers has for it
        **_options: Any,  # noqa: ANN401
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the beginning before those of the pass."""
        n_rows = len(key_states)
        keys, values = (known.expand(n_rows, -1, -1, -1) for known in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


def beginning(cache: DynamicCache, n_tokens: int) -> DynamicCache:
    """The first tokens of a cache, without a copy: what a pass goes on from, as often as one likes.

    Args:
        cache: Of one row, or of as many as the pass has.
        n_tokens: Tokens that are before the pass.
    """
    known = DynamicCache()
    known.layers = [_KnownLayer(layer.keys[:, :, :n_tokens], layer.values[:, :, :n_tokens]) for layer in cache.layers]
    return known


@dataclass(frozen=True)
class Rows:
    """Rows of one pass.

    Attributes:
        tokens: Shape (B, L), int64.
        reads: For each row the columns that are read, int64.
        start: Tokens before them, p.
    """

    tokens: Integers
    reads: tuple[Integers, ...]
    start: int = 0


@dataclass(frozen=True)
class NoisyPass:
    """A pass at noisy embeddings.

    Attributes:
        states: For each row shape (reads, D), with a graph to `leaf`.
        clean: Shape (B, L, H): embeddings without noise.
        leaf: Shape (B, L, H): with noise.
    """

    states: list[torch.Tensor]
    clean: torch.Tensor
    leaf: torch.Tensor


@dataclass(frozen=True)
class Passes:
    """A policy as passes see it.

    Attributes:
        ask: A forward pass.
        embedding: The module whose output is the input embeddings.
        device: Where it runs.
        shares: Whether rows go on from keys and values of their beginnings; else beginnings are read again.
        beat: Called before each pass.
    """

    ask: Ask
    embedding: nn.Module
    device: torch.device
    shares: bool = True
    beat: Callable[[], None] = field(default=lambda: None)

    def clean(self, rows: Rows) -> tuple[list[torch.Tensor], DynamicCache | None]:
        """A pass over rows from their first token on.

        Returns:
            For each row what is read, shape (reads, D); keys and values, if they are of use.
        """
        self.beat()
        cache = DynamicCache() if self.shares else None
        return self._read(rows, cache), cache

    def after(self, rows: Rows, cache: DynamicCache | None) -> list[torch.Tensor]:
        """A pass over rows that go on from a beginning.

        Args:
            rows: From column `start` on.
            cache: Of the beginning; None for rows that start at their first token.

        Returns:
            For each row what is read, shape (reads, D).
        """
        self.beat()
        return self._read(rows, self._past(rows, cache))

    def noisy(self, rows: Rows, cache: DynamicCache | None, noise: Callable[[int], torch.Tensor]) -> NoisyPass:
        """A pass with noise on embeddings, to be followed back to them.

        Args:
            rows: From column `start` on.
            cache: As `after`.
            noise: From the width H of embeddings to what is added to them, shape (B, L, H), float32.

        Raises:
            ValueError: If the model does not compute in float32.
        """
        self.beat()
        with _noise_on(self.embedding, noise) as seen, torch.enable_grad():
            states = self._read(rows, self._past(rows, cache))
        return NoisyPass(states, seen[0][0], seen[0][1])

    def _past(self, rows: Rows, cache: DynamicCache | None) -> DynamicCache | None:
        if cache is None and rows.start:
            raise ValueError(f"got rows from token {rows.start} on without a cache of those before")
        return None if cache is None or not rows.start else beginning(cache, rows.start)

    def _read(self, rows: Rows, past: DynamicCache | None) -> list[torch.Tensor]:
        columns = np.unique(np.concatenate(rows.reads))
        places = torch.arange(rows.start, rows.start + rows.tokens.shape[1], device=self.device)[None]
        # Without a cache a row of positions for each row of tokens, or some masks take them for packed texts.
        places = places if past is not None else places.expand(len(rows.tokens), -1)
        tokens = torch.from_numpy(np.ascontiguousarray(rows.tokens)).to(self.device)
        found = self.ask(tokens, places, past, torch.from_numpy(columns).to(self.device))
        wanted = [torch.from_numpy(np.searchsorted(columns, one)).to(self.device) for one in rows.reads]
        return [found[row, these] for row, these in enumerate(wanted)]


@contextmanager
def _noise_on(
    embedding: nn.Module, noise: Callable[[int], torch.Tensor]
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Noise on what an embedding returns next, which becomes the leaf that a gradient goes back to."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def replaced(_module: nn.Module, _inputs: object, made: torch.Tensor) -> torch.Tensor:
        if made.dtype.itemsize < torch.float32.itemsize:
            raise ValueError(f"a gradient at noisy embeddings is computed in float32: got {made.dtype}")
        clean = made.detach()
        leaf = (clean + noise(clean.shape[-1])).requires_grad_()
        seen.append((clean, leaf))
        return leaf

    handle = embedding.register_forward_hook(replaced)
    try:
        yield seen
    finally:
        handle.remove()


def filled(sequences: Sequence[Integers], pad_id: int) -> Integers:
    """Sequences as rows of equal length, filled up at their ends.

    Args:
        sequences: Token ids, none of them empty.
        pad_id: Fills up what is shorter; nobody sees it, so any token does.

    Returns:
        Shape (B, longest), int64.
    """
    rows = np.full((len(sequences), max(map(len, sequences))), pad_id, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        rows[row, : len(sequence)] = sequence
    return rows
