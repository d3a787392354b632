import itertools

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from creditd.engines.model_spec import HeadChoice  # noqa: E402
from creditd.engines.reward_scorers import TrieScorer, Variants  # noqa: E402
from creditd.engines.trie import build_trie  # noqa: E402
from creditd.engines.trie_forward import leaf_states  # noqa: E402
from engines.architectures import CAUSAL, VOCABULARY, made  # noqa: E402
from engines.shapes import ignore  # noqa: E402

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


tokens = st.integers(1, 3)
batches = st.lists(
    st.tuples(
        st.lists(tokens, min_size=1, max_size=12),
        st.lists(st.lists(tokens, max_size=6), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=25)
@given(prompts=batches, most_nodes=st.integers(1, 40))
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_any_variants_of_several_prompts_have_the_scores_one_by_one(name, prompts, most_nodes):
    """One request for each prompt; variants may be empty, alone, or begin others; positions rotary or absolute."""
    model = made(name)
    works = [
        Variants(tuple(np.array([*prompt, *variant], dtype=np.int64) for variant in variants))
        for prompt, variants in prompts
    ]
    found = TrieScorer(model, HeadChoice(), most_nodes=most_nodes).score(works, ignore)
    for work, scores in zip(works, found, strict=True):
        with torch.inference_mode():
            alone = np.array([model(torch.from_numpy(row)[None]).logits[0, 0].item() for row in work.sequences])
        assert (np.abs(scores - alone) <= AGREEMENT * np.maximum(1.0, np.abs(alone))).all()


def coalitions_of_eight():
    """A prompt and all coalitions of eight spans."""
    draw = np.random.default_rng(0)
    prompt, *spans = (draw.integers(1, VOCABULARY, length).tolist() for length in (64, *[8] * 8))
    return [
        [*prompt, *itertools.chain(*itertools.compress(spans, present))]
        for present in itertools.product([False, True], repeat=8)
    ]


def replacements():
    """A prompt and a completion of which each token in turn is another one."""
    draw = np.random.default_rng(0)
    prompt, completion = draw.integers(1, VOCABULARY, 64).tolist(), draw.integers(1, VOCABULARY, 60).tolist()
    changed = [
        [*completion[:place], 1 + token % 99, *completion[place + 1 :]] for place, token in enumerate(completion)
    ]
    return [[*prompt, *variant] for variant in (completion, *changed)]


@pytest.mark.parametrize(("sequences", "most"), [(coalitions_of_eight(), 1.15), (replacements(), 1.3)])
@pytest.mark.parametrize("most_nodes", [64, 256])
def test_what_is_computed_is_little_more_than_the_distinct_prefixes(sequences, most, most_nodes):
    """Counted where tokens enter the model, whatever the chunks: carrying keys and values computes none again."""
    backbone, sizes = made("llama", max_position_embeddings=512).base_model, []
    handle = backbone.embed_tokens.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
    trie = build_trie([np.array(row, dtype=np.int64) for row in sequences])
    found = leaf_states(backbone, trie, most_nodes=most_nodes)
    handle.remove()
    prefixes = {tuple(row[:n]) for row in sequences for n in range(1, len(row) + 1)}
    assert found.n_computed == sum(sizes) <= most * len(prefixes)
    assert sum(map(len, sequences)) > 2 * sum(sizes)


def test_states_are_read_chunk_by_chunk():
    """What is kept of a sequence is what `read` makes of its state; states of all sequences are never together."""
    sequences = [[1, 2, 3], [1, 2], [4], [1, 2, 3, 5], [4]]
    trie = build_trie([np.array(row, dtype=np.int64) for row in sequences])
    backbone, seen = made("qwen2").base_model, []

    def read(states):
        seen.append(len(states))
        return states.sum(dim=-1, keepdim=True)

    found = leaf_states(backbone, trie, most_nodes=2, read=read)
    whole = leaf_states(backbone, trie, most_nodes=2)
    assert seen == [1, 2, 1]
    assert found.states.shape == (5, 1)
    assert torch.allclose(found.states[:, 0], whole.states.sum(dim=-1))
    assert torch.equal(whole.states[2], whole.states[4])


def test_no_gradient_is_kept_and_no_mode_changed():
    """A pass keeps nothing for a gradient, even where gradients are on, and leaves the model as it was."""
    model = made("llama")
    trie = build_trie([np.array([1, 2, 3]), np.array([1, 2, 4])])
    with torch.enable_grad():
        found = leaf_states(model.base_model, trie, most_nodes=2)
        assert torch.is_grad_enabled()
    assert not found.states.requires_grad
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
