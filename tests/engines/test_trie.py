from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.engines.trie import build_trie, chunks_of, joined, visible

sequences = st.lists(st.lists(st.integers(0, 3) | st.just(2**40), min_size=1, max_size=8), min_size=1, max_size=12)


def arrays(rows):
    """Rows as arrays of token ids."""
    return [np.array(row, dtype=np.int64) for row in rows]


def prefix_of(trie, node):
    """The tokens from a root to a node."""
    tokens = []
    while node >= 0:
        tokens.append(int(trie.tokens[node]))
        node = int(trie.parents[node])
    return tuple(tokens[::-1])


@given(sequences)
def test_every_distinct_prefix_is_one_node(rows):
    """There is a node for each distinct prefix and no other, with its depth; leaves are the whole sequences."""
    trie = build_trie(arrays(rows))
    expected = {tuple(row[:length]) for row in rows for length in range(1, len(row) + 1)}
    found = [prefix_of(trie, node) for node in range(len(trie))]
    assert len(found) == len(expected)
    assert set(found) == expected
    assert trie.depths.tolist() == [len(prefix) - 1 for prefix in found]
    assert [found[leaf] for leaf in trie.leaves] == [tuple(row) for row in rows]


@given(sequences)
def test_nodes_stand_depth_first(rows):
    """A subtree is a run of nodes that begins with its root: node j is a prefix of node i iff j ≤ i < end[j]."""
    trie = build_trie(arrays(rows))
    prefixes = [prefix_of(trie, node) for node in range(len(trie))]
    for j, ancestor in enumerate(prefixes):
        below = [i for i, prefix in enumerate(prefixes) if prefix[: len(ancestor)] == ancestor]
        assert below == list(range(j, int(trie.ends[j])))


@given(sequences, st.integers(1, 9))
def test_chunks_see_their_ancestors_and_nothing_else(rows, most_nodes):
    """Every node is in one chunk, and sees exactly its own prefixes, on the path or in the chunk."""
    trie = build_trie(arrays(rows))
    prefixes = [prefix_of(trie, node) for node in range(len(trie))]
    covered = []
    for chunk in chunks_of(trie, most_nodes):
        assert chunk.stop - chunk.start <= most_nodes
        nodes = list(range(chunk.start, chunk.stop))
        covered += nodes
        keys = [*chunk.path.tolist(), *nodes]
        for node, row in zip(nodes, visible(trie, chunk), strict=True):
            seen = [prefixes[key] for key, shown in zip(keys, row, strict=True) if shown]
            assert seen == [prefixes[node][:length] for length in range(1, len(prefixes[node]) + 1)]
    assert covered == list(range(len(trie)))


@given(st.lists(sequences, min_size=1, max_size=3))
def test_joined_tries_stand_beside_each_other(requests):
    """The sequences of several requests are leaves of one forest, whose trees do not see each other."""
    tries = [build_trie(arrays(rows)) for rows in requests]
    forest = joined(tries)
    assert len(forest) == sum(map(len, tries))
    assert [prefix_of(forest, leaf) for leaf in forest.leaves] == [tuple(row) for rows in requests for row in rows]
    assert (forest.parents < np.arange(len(forest))).all()
    assert (forest.ends > np.arange(len(forest))).all()
    starts = np.cumsum([0, *map(len, tries)])
    for start, stop in pairwise(starts.tolist()):
        assert (forest.ends[start:stop] <= stop).all()
        assert ((forest.parents[start:stop] >= start) | (forest.parents[start:stop] == -1)).all()


def test_a_trie_of_nothing_is_refused():
    """No sequence, an empty one, or an empty chunk is an error."""
    with pytest.raises(ValueError, match="at least one token"):
        build_trie([])
    with pytest.raises(ValueError, match="at least one token"):
        build_trie(arrays([[1], []]))
    with pytest.raises(ValueError, match="at least one node: got 0"):
        list(chunks_of(build_trie(arrays([[1]])), 0))
