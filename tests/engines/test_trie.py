from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.engines.trie import build_trie, chunks_of, intervals_of, joined, padded

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
        for node, row in zip(nodes, intervals_of(trie, chunk).dense(len(nodes)), strict=True):
            seen = [prefixes[key] for key, shown in zip(keys, row, strict=True) if shown]
            assert seen == [prefixes[node][:length] for length in range(1, len(prefixes[node]) + 1)]
    assert covered == list(range(len(trie)))


@given(sequences, st.integers(1, 9), st.integers(0, 5), st.integers(0, 5))
def test_what_fills_up_sees_itself_and_is_seen_by_nobody_else(rows, most_nodes, more_queries, more_keys):
    """Every query beyond the nodes has one key of its own; nodes see what they saw."""
    trie = build_trie(arrays(rows))
    for chunk in chunks_of(trie, most_nodes):
        n_nodes, n_path = chunk.stop - chunk.start, len(chunk.path)
        n_queries = n_nodes + more_queries
        before = intervals_of(trie, chunk)
        after = padded(before, n_path, n_queries, n_path + n_queries + more_keys).dense(n_queries)
        assert (after[:n_nodes, : n_path + n_nodes] == before.dense(n_nodes)).all()
        assert not after[:n_nodes, n_path + n_nodes :].any()
        own = np.zeros_like(after[n_nodes:])
        own[np.arange(more_queries), n_path + n_nodes + np.arange(more_queries)] = True
        assert (after[n_nodes:] == own).all()


def test_a_chunk_that_does_not_fit_is_refused():
    """More nodes or a longer path than there is room for are an error that says how many."""
    trie = build_trie(arrays([[1, 2, 3, 4]]))
    chunk = list(chunks_of(trie, 2))[1]
    with pytest.raises(ValueError, match="got 2 nodes and a path of 2; expected at most 2 and 1"):
        padded(intervals_of(trie, chunk), 2, 2, 3)
    with pytest.raises(ValueError, match="expected at most 1 and 9"):
        padded(intervals_of(trie, chunk), 2, 1, 10)


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
