import threading

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore:flex_attention called without"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler uses what torch deprecates
]

import torch  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from creditd.engines.model_spec import HeadChoice  # noqa: E402
from creditd.engines.reward_scorers import TrieScorer  # noqa: E402
from creditd.engines.trie import build_trie, chunks_of, intervals_of, padded  # noqa: E402
from creditd.engines.trie_forward import leaf_states  # noqa: E402
from creditd.engines.trie_masks import (  # noqa: E402
    BLOCK,
    BLOCK_ATTENTION,
    MOST_COMPILATIONS,
    BlockMasks,
    DenseMasks,
    block_attention,
    block_mask,
)
from engines.architectures import CAUSAL, made  # noqa: E402
from engines.shapes import Compilations, assert_like_one_by_one, ignore, reward_model, variants  # noqa: E402

AGREEMENT = 1e-5
CPU = torch.device("cpu")
rows = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=60), min_size=1, max_size=12)


def trie_of(sequences):
    """The trie of rows of token ids."""
    return build_trie([np.array(row, dtype=np.int64) for row in sequences])


def long_trie(seed=0, n=40):
    """A trie of several blocks."""
    draw = np.random.default_rng(seed)
    return trie_of([draw.integers(1, 3, draw.integers(1, 60)).tolist() for _ in range(n)])


@settings(max_examples=40)
@given(rows, st.integers(1, 300))
def test_blocks_are_those_of_the_dense_mask(sequences, most_nodes):
    """A block is passed over iff nobody in it sees anybody, and is whole iff all see all."""
    trie = trie_of(sequences)
    n_queries = -(-most_nodes // BLOCK) * BLOCK
    for chunk in chunks_of(trie, most_nodes):
        n_keys = n_queries + (BLOCK if len(chunk.path) else 0)
        intervals = padded(intervals_of(trie, chunk), len(chunk.path), n_queries, n_keys)
        mask = block_mask(intervals, n_queries, CPU)
        cells = intervals.dense(n_queries).reshape(n_queries // BLOCK, BLOCK, n_keys // BLOCK, BLOCK).swapaxes(1, 2)
        assert (mask.to_dense()[0, 0].bool().numpy() == cells.any(axis=(2, 3))).all()
        assert mask.full_kv_num_blocks.sum() == cells.all(axis=(2, 3)).sum()
        queries, keys = torch.arange(n_queries)[:, None], torch.arange(n_keys)[None]
        assert (mask.mask_mod(0, 0, queries, keys).numpy() == intervals.dense(n_queries)).all()
        assert mask.seq_lengths == (n_queries, n_keys)


@pytest.mark.parametrize("most_nodes", [40, 200, 256])
@pytest.mark.parametrize("name", [name for name in CAUSAL if name != "gpt2"])
def test_block_masks_are_the_dense_ones(name, most_nodes):
    """FlexAttention, not compiled here, sees the same ancestors as a dense mask shows."""
    trie, model = long_trie(), made(name)
    dense = leaf_states(model.base_model, trie, most_nodes=most_nodes)
    model.set_attn_implementation(BLOCK_ATTENTION)
    found = leaf_states(model.base_model, trie, most_nodes=most_nodes, masks=BlockMasks.of(model, 256, 60))
    assert ((found.states - dense.states).abs() <= AGREEMENT * dense.states.abs().clamp(min=1.0)).all()
    assert found.n_computed == dense.n_computed == len(trie)


def test_nothing_but_tries_goes_through_blocks():
    """A model that reads tries by blocks reads padded batches by SDPA, and says the same as before."""
    model = made("qwen3")
    tokens, present = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    before = model(input_ids=tokens, attention_mask=present).logits
    model.set_attn_implementation(BLOCK_ATTENTION)
    block_attention.shapes.clear()
    assert torch.equal(model(input_ids=tokens, attention_mask=present).logits, before)
    assert not block_attention.shapes


def test_fillers_cost_the_model_nothing():
    """What fills up the attention never goes through the layers, and no key of it is carried."""
    trie, model = long_trie(), made("llama")
    model.set_attn_implementation(BLOCK_ATTENTION)
    sizes = []
    handle = model.base_model.layers[0].mlp.register_forward_pre_hook(
        lambda _, inputs: sizes.append(inputs[0].shape[1])
    )
    leaf_states(model.base_model, trie, most_nodes=200, masks=BlockMasks.of(model, 200, 60))
    handle.remove()
    assert sum(sizes) == len(trie)
    assert len(sizes) > 2


@pytest.mark.parametrize("compiled", [False, True])
def test_two_shapes_are_all_that_is_ever_compiled(compiled, monkeypatch):
    """Whatever is asked, from whichever thread: a first chunk, and one with a path, compiled once each."""
    monkeypatch.setattr(block_attention, "compiled", compiled)
    model = reward_model("tiny")
    model.set_attn_implementation(BLOCK_ATTENTION)
    masks, found = BlockMasks.of(model, 256, 200), []

    def ask(seed):
        work = variants(prompt=7 + 13 * seed, n_spans=5, span=3 + seed, seed=seed)
        for most_nodes in (17, 128, 256):
            by_blocks = TrieScorer(model, HeadChoice(), most_nodes=most_nodes, masks=masks).score([work], ignore)[0]
            dense = TrieScorer(model, HeadChoice(), most_nodes=most_nodes, masks=DenseMasks(CPU)).score([work], ignore)[
                0
            ]
            found.append(np.abs(by_blocks - dense).max())

    counted = Compilations()
    ask(0)
    with_warm_up = counted.graphs
    for seed in (1, 2):
        thread = threading.Thread(target=ask, args=(seed,))
        thread.start()
        thread.join()
    assert counted.shapes == {(256, 256), (256, 512)}
    assert counted.graphs == with_warm_up <= 2
    assert len(found) == 9
    assert max(found) <= AGREEMENT


def test_many_models_of_one_process_have_room_to_be_compiled():
    """Each model has two shapes of its own; the limit of eight for all of them together is each thread's own."""
    limits = []
    block_attention.shapes.clear()

    def load():
        limits.append(torch._dynamo.config.recompile_limit)
        assert_like_one_by_one(reward_model("tiny"), "blocks", variants(prompt=9, n_spans=3), 16, 64)
        limits.append(torch._dynamo.config.recompile_limit)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert limits[0] < limits[1] == MOST_COMPILATIONS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["dense", "blocks"])
def test_every_type_gives_the_scores_one_by_one(kind, dtype):
    """Grouped queries, two prompts, chunks that carry paths, in each float type and with both masks."""
    assert_like_one_by_one(reward_model("tiny", dtype), kind, variants(n_spans=4), 128, 128)


def test_what_does_not_fit_is_refused():
    """A path that is longer than its room is an error, and so is an attention that blocks do not have."""
    model = made("llama")
    model.set_attn_implementation(BLOCK_ATTENTION)
    with pytest.raises(ValueError, match="path of 192; expected at most 128 and 128"):
        leaf_states(model.base_model, trie_of([[1] * 200]), most_nodes=64, masks=BlockMasks.of(model, 64, 100))
    attend = model.base_model.layers[0].self_attn
    query = torch.zeros(1, 4, 3, 8)
    mask = BlockMasks.of(model, 64, 100)(trie := trie_of([[1, 2, 3]]), next(chunks_of(trie, 64)))
    from creditd.engines import trie_masks

    with pytest.raises(ValueError, match="no softcap"):
        trie_masks._attention(attend, query, query, query, mask, scaling=None, softcap=30.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CAUSAL)
def test_attention_that_adds_its_mask_gets_numbers(name, dtype):
    """The eager attention of transformers adds masks to scores: booleans would be ones and zeros to it."""
    model = made(name).to(dtype)
    trie = long_trie(n=8)
    expected = leaf_states(model.base_model, trie, most_nodes=64).states
    model.set_attn_implementation("eager")
    masks = DenseMasks.of(model)
    assert masks.added_to == dtype
    found = leaf_states(model.base_model, trie, most_nodes=64, masks=masks).states
    allowed = AGREEMENT if dtype == torch.float32 else 0.1
    assert ((found - expected).abs() <= allowed * expected.abs().clamp(min=1.0)).all()
