"""Many token sequences as one forest of their distinct prefixes, laid out so that a causal model reads it as one row.

Legend: `V` sequences, `T` nodes, one per distinct prefix.

Nodes stand depth-first. Node j is a prefix of node i (or i itself) if and only if j ≤ i < end[j], where end[j] is the
end of j's subtree: the interval test is the whole attention mask. Sequences without a common first token are trees of
one forest, so that prompts share a row as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Trie:
    """Distinct prefixes of V sequences.

    Attributes:
        tokens: Shape (T,), int64: last token of each prefix.
        depths: Shape (T,), int64: number of tokens before it; the position that the model is told.
        ends: Shape (T,), int64: one past the last node of the subtree.
        parents: Shape (T,), int64: the prefix that is one token shorter; −1 for a first token.
        leaves: Shape (V,), int64: the node of each whole sequence.
    """

    tokens: Integers
    depths: Integers
    ends: Integers
    parents: Integers
    leaves: Integers

    def __len__(self) -> int:
        """Number of nodes T."""
        return len(self.tokens)


@dataclass(frozen=True)
class Chunk:
    """Nodes that are computed together, after everything before them.

    Attributes:
        start: First node.
        stop: One past the last node.
        path: Shape (p,), int64: the ancestors of the first node, from the root on. No other node before `start` is an
            ancestor of any node of the chunk.
    """

    start: int
    stop: int
    path: Integers


@dataclass(frozen=True)
class Intervals:
    """Who sees each key of a chunk: queries are numbered from 0, and key k is seen by begins[k] ≤ query < ends[k].

    Attributes:
        begins: Shape (K,), int32.
        ends: Shape (K,), int32; nobody sees a key whose end is its begin.
    """

    begins: NDArray[np.int32]
    ends: NDArray[np.int32]

    def dense(self, n_queries: int) -> Booleans:
        """Shape (n_queries, K), bool: True where the query sees the key."""
        queries = np.arange(n_queries, dtype=np.int32)[:, None]
        seen: Booleans = (self.begins <= queries) & (self.ends > queries)
        return seen


def build_trie(sequences: Sequence[Integers]) -> Trie:
    """The forest of the distinct prefixes of some sequences.

    Args:
        sequences: V ≥ 1 arrays of token ids ≥ 0, int64, each of at least one token; repetitions share a leaf.

    Returns:
        Leaves in the order of the sequences.

    Raises:
        ValueError: If there is no sequence, or one is empty.

    Cost:
        O(V log V) comparisons of sequences, and a few array operations per sequence.
    """
    if not sequences or any(len(sequence) == 0 for sequence in sequences):
        raise ValueError("a trie is made of sequences of at least one token: got none, or an empty one")
    # Big-endian bytes sort as the numbers do, in C.
    keys = [np.ascontiguousarray(sequence, dtype=">u8").tobytes() for sequence in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    leaves = np.empty(len(sequences), dtype=np.int64)
    path = np.empty(max(map(len, sequences)), dtype=np.int64)
    tokens, depths, parents = [], [], []
    closed: list[tuple[Integers, int]] = []
    n_nodes, before = 0, np.empty(0, dtype=np.int64)
    for number in order:
        sequence = np.asarray(sequences[number], dtype=np.int64)
        shared = _common_prefix(before, sequence)
        closed.append((path[shared : len(before)].copy(), n_nodes))
        fresh = len(sequence) - shared
        nodes = np.arange(n_nodes, n_nodes + fresh)
        path[shared : len(sequence)] = nodes
        tokens.append(sequence[shared:])
        depths.append(np.arange(shared, len(sequence)))
        parents.append(np.concatenate([path[shared - 1 : shared] if shared else [-1], nodes[:-1]])[:fresh])
        leaves[number] = path[len(sequence) - 1]
        n_nodes += fresh
        before = sequence
    closed.append((path[: len(before)].copy(), n_nodes))
    ends = np.empty(n_nodes, dtype=np.int64)
    for nodes, end in closed:
        ends[nodes] = end
    return Trie(
        tokens=np.concatenate(tokens),
        depths=np.concatenate(depths),
        ends=ends,
        parents=np.concatenate(parents).astype(np.int64),
        leaves=leaves,
    )


def joined(tries: Sequence[Trie]) -> Trie:
    """Several tries as one forest, without looking for prefixes that they share.

    Args:
        tries: At least one.

    Returns:
        Nodes and leaves one trie after another.

    Cost:
        O(T) for T nodes of all of them.
    """
    if len(tries) == 1:
        return tries[0]
    starts = np.cumsum([0, *(len(trie) for trie in tries)])[:-1].tolist()
    placed = list(zip(tries, starts, strict=True))
    return Trie(
        tokens=np.concatenate([trie.tokens for trie in tries]),
        depths=np.concatenate([trie.depths for trie in tries]),
        ends=np.concatenate([trie.ends + start for trie, start in placed]),
        parents=np.concatenate([np.where(trie.parents < 0, -1, trie.parents + start) for trie, start in placed]),
        leaves=np.concatenate([trie.leaves + start for trie, start in placed]),
    )


def chunks_of(trie: Trie, most_nodes: int) -> Iterator[Chunk]:
    """A trie cut into runs of nodes.

    Args:
        trie: Any.
        most_nodes: Most nodes of one chunk, at least 1.

    Yields:
        Chunks in order; together they have every node once.

    Raises:
        ValueError: If chunks would have no node.

    Cost:
        O(depth) per chunk.
    """
    if most_nodes < 1:
        raise ValueError(f"a chunk has at least one node: got {most_nodes}")
    for start in range(0, len(trie), most_nodes):
        path, node = [], int(trie.parents[start])
        while node >= 0:
            path.append(node)
            node = int(trie.parents[node])
        yield Chunk(start, min(start + most_nodes, len(trie)), np.array(path[::-1], dtype=np.int64))


def intervals_of(trie: Trie, chunk: Chunk) -> Intervals:
    """Which nodes of a chunk see each node of its path and of itself.

    Args:
        trie: Any.
        chunk: One of its chunks.

    Returns:
        For p + c keys, a path of p and c nodes; no end is past c.

    Cost:
        O(p + c).
    """
    n_nodes = chunk.stop - chunk.start
    begins = np.concatenate([np.zeros(len(chunk.path)), np.arange(n_nodes)])
    ends = np.concatenate([trie.ends[chunk.path], trie.ends[chunk.start : chunk.stop]]) - chunk.start
    return Intervals(begins.astype(np.int32), np.minimum(ends, n_nodes).astype(np.int32))


def padded(intervals: Intervals, n_path: int, n_queries: int, n_keys: int) -> Intervals:
    """The same for more queries and keys, of which those that stand for nothing see nothing but themselves.

    Args:
        intervals: For p keys of a path and c of c queries, in this order.
        n_path: p.
        n_queries: Queries afterwards, at least c.
        n_keys: Keys afterwards, at least p + n_queries.

    Returns:
        Query s beyond the first c sees key p + s alone, which nobody else sees; other new keys are seen by nobody.

    Raises:
        ValueError: If there is less room than that.

    Cost:
        O(n_keys).
    """
    n_known = len(intervals.begins)
    if n_known - n_path > n_queries or n_path + n_queries > n_keys:
        most = n_keys - n_queries
        raise ValueError(
            f"got {n_known - n_path} nodes and a path of {n_path}; expected at most {n_queries} and {most}"
        )
    begins, ends = np.zeros(n_keys, dtype=np.int32), np.zeros(n_keys, dtype=np.int32)
    begins[:n_known], ends[:n_known] = intervals.begins, intervals.ends
    fillers = np.arange(n_known - n_path, n_queries, dtype=np.int32)
    begins[n_path + fillers], ends[n_path + fillers] = fillers, fillers + 1
    return Intervals(begins, ends)


def _common_prefix(first: Integers, second: Integers) -> int:
    """Number of leading tokens that two sequences share."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
