import itertools

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from creditd.engines.trie import build_trie  # noqa: E402
from creditd.engines.trie_forward import leaf_states  # noqa: E402
from engines.architectures import CAUSAL, VOCABULARY, made  # noqa: E402

AGREEMENT = 1e-5
"""Of max(1, |state|), in float32."""


@pytest.fixture(scope="module", params=CAUSAL)
def backbone(request):
    """A causal model without its head."""
    return made(request.param).base_model


@torch.inference_mode()
def one_by_one(backbone, sequences):
    """Last states of sequences, each in a pass of its own."""
    return torch.stack([backbone(torch.tensor(row)[None]).last_hidden_state[0, -1] for row in sequences])


def assert_alike(backbone, sequences, most_nodes):
    """States from a trie are those of the sequences one by one."""
    trie = build_trie([np.array(row, dtype=np.int64) for row in sequences])
    found = leaf_states(backbone, trie, most_nodes=most_nodes)
    expected = one_by_one(backbone, sequences)
    assert ((found.states - expected).abs() <= AGREEMENT * expected.abs().clamp(min=1.0)).all()
    assert found.n_computed == len({tuple(row[:n]) for row in sequences for n in range(1, len(row) + 1)})


@pytest.mark.parametrize("most_nodes", [1, 7, 64, 10_000])
def test_coalitions_of_two_prompts_in_one_row(backbone, most_nodes):
    """All subsets of the spans of two completions, empty ones included, whatever the chunks."""
    draw = np.random.default_rng(3)
    sequences = []
    for length, n_spans in ((20, 4), (5, 3)):
        prompt = draw.integers(1, VOCABULARY, length).tolist()
        spans = [draw.integers(1, VOCABULARY, 3).tolist() for _ in range(n_spans)]
        coalitions = itertools.product([False, True], repeat=n_spans)
        sequences += [[*prompt, *itertools.chain(*itertools.compress(spans, present))] for present in coalitions]
    assert_alike(backbone, sequences, most_nodes)


@settings(max_examples=25)
@given(
    sequences=st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=9), min_size=1, max_size=9),
    most_nodes=st.integers(1, 12),
)
def test_any_sequences(backbone, sequences, most_nodes):
    """Repetitions, prefixes of others, single tokens, nothing in common: whatever the sequences are."""
    assert_alike(backbone, sequences, most_nodes)
