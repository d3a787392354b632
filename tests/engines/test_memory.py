import dataclasses

import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore:flex_attention called without")]

import torch  # noqa: E402

from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.memory import ForwardShape, batch_bytes, demand_room, trie_bytes  # noqa: E402
from creditd.engines.model_spec import HeadChoice  # noqa: E402
from creditd.engines.reward_scorers import LengthScorer, TrieScorer  # noqa: E402
from creditd.engines.trie_masks import block_attention  # noqa: E402
from engines.architectures import BIDIRECTIONAL, CAUSAL, made  # noqa: E402
from engines.shapes import ignore, masks_of, peak_bytes, reward_model, variants  # noqa: E402

CPU = torch.device("cpu")
LOOSE = 8
"""A bound that is more than this many times what was needed would refuse models that fit."""


def of_vocabulary(work, size):
    """The same work with tokens that a small model has."""
    return dataclasses.replace(work, sequences=tuple(row % (size - 1) + 1 for row in work.sequences))


@pytest.mark.parametrize("most_nodes", [64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_pass_over_a_trie_takes_no_more_than_was_said(name, dtype, most_nodes):
    """Of every family: keys and values of a chunk and a path, dense masks, activations."""
    model = made(name, hidden_size=128, intermediate_size=512, head_dim=32).to(dtype)
    work = of_vocabulary(variants(prompt=100, n_spans=5, span=20, n_prompts=3), 300)
    bound = trie_bytes(ForwardShape.of(model), most_nodes=most_nodes, longest=200, blocks=False)
    scorer = TrieScorer(model, HeadChoice(), most_nodes=most_nodes)
    scorer.score([work], ignore)
    peak = peak_bytes("cpu", lambda: scorer.score([work], ignore))
    assert peak <= bound <= LOOSE * peak + (1 << 20)


def test_many_layers_and_long_paths_are_counted():
    """Keys and values of all layers are most of what a deep model holds; the bound follows them."""
    model = reward_model("tiny", num_hidden_layers=16)
    work = variants(prompt=1500, n_spans=3, span=60, n_prompts=1)
    bound = trie_bytes(ForwardShape.of(model), most_nodes=128, longest=1700, blocks=False)
    scorer = TrieScorer(model, HeadChoice(), most_nodes=128)
    peak = peak_bytes("cpu", lambda: scorer.score([work], ignore))
    assert peak <= bound <= 3 * peak


def test_attention_that_keeps_scores_is_counted():
    """The eager attention of transformers holds a score for each two tokens and each head."""
    model = made("llama")
    model.set_attn_implementation("eager")
    work = of_vocabulary(variants(prompt=100, n_spans=5, span=20, n_prompts=2), 300)
    bound = trie_bytes(ForwardShape.of(model), most_nodes=256, longest=200, blocks=False)
    scorer = TrieScorer(model, HeadChoice(), most_nodes=256)
    assert peak_bytes("cpu", lambda: scorer.score([work], ignore)) <= bound


@pytest.mark.parametrize("name", [*CAUSAL, *BIDIRECTIONAL])
def test_a_padded_batch_takes_no_more_than_was_said(name):
    """Batches of like length, of models of any kind."""
    model = made(name)
    work = of_vocabulary(variants(prompt=100, n_spans=5, span=20, n_prompts=1), 300)
    bound = batch_bytes(ForwardShape.of(model), most_tokens=1024, longest=200)
    scorer = LengthScorer(model, HeadChoice(), most_tokens=1024, pad_id=0)
    peak = peak_bytes("cpu", lambda: scorer.score([work], ignore))
    assert peak <= bound <= LOOSE * peak + (1 << 20)


def test_the_bound_grows_with_what_it_is_about():
    """More tokens, longer paths, more layers and wider types need more; blocks need less than dense masks."""
    shape = ForwardShape.of(reward_model("tiny"))
    usual = {"most_nodes": 1024, "longest": 4096}
    base = trie_bytes(shape, **usual, blocks=False)
    assert trie_bytes(shape, **usual, blocks=True) < base
    for more in ({"most_nodes": 2048}, {"longest": 8192}):
        for blocks in (False, True):
            assert trie_bytes(shape, **{**usual, **more}, blocks=blocks) > trie_bytes(shape, **usual, blocks=blocks)
    for field in ("n_layers", "n_kv_heads", "inner", "hidden", "n_bytes"):
        assert trie_bytes(dataclasses.replace(shape, **{field: 4096}), **usual, blocks=True) > base
    assert batch_bytes(shape, most_tokens=8192, longest=512) > batch_bytes(shape, most_tokens=4096, longest=512)
    assert batch_bytes(shape, most_tokens=1, longest=8192) > batch_bytes(shape, most_tokens=1, longest=4096)


def test_what_does_not_fit_names_the_settings(monkeypatch):
    """Got, expected, and what to lower; the bound of the registration and the free memory of a GPU alike."""
    demand_room(5 << 20, most=None, device=CPU, lower="max_tokens")
    demand_room(5 << 20, most=5 << 20, device=CPU, lower="max_tokens")
    with pytest.raises(
        ModelUnsuitableError, match=r"up to 5\.0 MiB .* the 4\.0 MiB that max_forward_bytes allows: lower x"
    ):
        demand_room(5 << 20, most=4 << 20, device=CPU, lower="x")
    for name, found in {
        "mem_get_info": (1 << 20, 9 << 20),
        "memory_reserved": 3 << 20,
        "memory_allocated": 1 << 20,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, found=found: found)
    demand_room(3 << 20, most=None, device=torch.device("cuda:0"), lower="x")
    with pytest.raises(ModelUnsuitableError, match=r"the 3\.0 MiB that cuda:0 has free: lower x"):
        demand_room(4 << 20, most=None, device=torch.device("cuda:0"), lower="x")


def test_shapes_are_read_from_any_configuration():
    """GPT-2 has names of its own, and experts count as one inner layer as wide as those a token goes through."""
    gpt2 = ForwardShape.of(made("gpt2"))
    assert (gpt2.hidden, gpt2.inner, gpt2.n_heads, gpt2.n_kv_heads, gpt2.head_dim) == (32, 128, 4, 4, 8)
    model = reward_model("tiny")
    assert dataclasses.replace(gpt2, inner=0, n_layers=0).n_bytes == 4
    model.config.num_experts_per_tok, model.config.moe_intermediate_size = 8, 100
    assert ForwardShape.of(model).inner == 800
    assert ForwardShape.of(reward_model("tiny", torch.bfloat16)).n_bytes == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("most_nodes", [256, 1024])
def test_compiled_blocks_take_no_more_than_was_said(most_nodes, monkeypatch):
    """What is filled up is counted with the rest; compiled as on a GPU, because else all scores would be in memory."""
    monkeypatch.setattr(block_attention, "compiled", True)
    model = reward_model("tiny", num_hidden_layers=4)
    work = variants(prompt=900, n_spans=6, span=10, n_prompts=2)
    bound = trie_bytes(ForwardShape.of(model), most_nodes=most_nodes, longest=1024, blocks=True)
    masks = masks_of(model, "blocks", most_nodes, 1024)
    scorer = TrieScorer(model, HeadChoice(), most_nodes=most_nodes, masks=masks)
    scorer.score([work], ignore)
    peak = peak_bytes("cpu", lambda: scorer.score([work], ignore))
    assert peak <= bound <= 3 * peak
