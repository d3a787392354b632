"""Tries on a GPU: the scores one by one in every type, two compilations, and no more memory than was said."""

import threading

import pytest

pytest.importorskip("transformers", reason="tests on a GPU need torch and transformers")
pytestmark = pytest.mark.gpu

import torch  # noqa: E402

from creditd.engines.memory import ForwardShape, batch_bytes, demand_room, free_bytes, trie_bytes  # noqa: E402
from creditd.engines.model_spec import HeadChoice  # noqa: E402
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, is_causal  # noqa: E402
from creditd.engines.self_check import check_tries  # noqa: E402
from engines.architectures import WINDOWED, made  # noqa: E402
from engines.shapes import (  # noqa: E402
    Compilations,
    assert_like_one_by_one,
    ignore,
    masks_of,
    peak_bytes,
    reward_model,
    variants,
)

CHUNK, LONGEST = 1024, 1024
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def emptied():
    """Nothing of one test is in the memory of the next, or compiled for it."""
    yield
    torch._dynamo.reset()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["dense", "blocks"])
@pytest.mark.parametrize("size", ["34 M", "160 M"])
def test_tries_have_the_scores_one_by_one(size, kind, dtype):
    """Several chunks that carry paths, in each type, with dense masks and with compiled blocks."""
    work = variants(prompt=300, n_spans=8, span=10, n_prompts=2)
    assert_like_one_by_one(reward_model(size, dtype, "cuda"), kind, work, CHUNK, LONGEST)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["dense", "blocks"])
def test_models_pass_their_check(kind, dtype):
    """The check that every engine makes at load, with both masks."""
    model = reward_model("34 M", dtype, "cuda")
    assert is_causal(model)
    checked = check_tries(model, masks=masks_of(model, kind, CHUNK, LONGEST), longest=LONGEST)
    assert checked.passed, checked


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", WINDOWED)
def test_models_with_a_window_fail_their_check(name, dtype):
    """Rounding on a GPU hides no window."""
    checked = check_tries(made(name).to("cuda", dtype))
    assert not checked.passed, checked


def test_blocks_are_compiled_twice_and_before_the_first_request():
    """The check at load runs both shapes; whatever is asked afterwards, from another thread, compiles nothing."""
    model = reward_model("34 M", torch.bfloat16, "cuda")
    masks, counted = masks_of(model, "blocks", CHUNK, LONGEST), Compilations()
    assert check_tries(model, masks=masks, longest=LONGEST).passed
    at_load = counted.graphs
    scorer = TrieScorer(model, HeadChoice(), most_nodes=CHUNK, masks=masks)
    works = [variants(prompt=3 + 97 * n, n_spans=2 + n, span=5 + n, n_prompts=1 + n % 3, seed=n) for n in range(7)]
    failures = []

    def ask():
        try:
            for work in works:
                scorer.score([work], ignore)
        except Exception as error:  # noqa: BLE001 - it is looked at in the test's own thread
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert not failures
    assert counted.shapes == {(CHUNK, CHUNK), (CHUNK, CHUNK + LONGEST)}
    assert counted.graphs == at_load == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["dense", "blocks"])
@pytest.mark.parametrize("size", ["34 M", "160 M"])
def test_a_pass_over_a_trie_takes_no_more_than_was_said(size, kind, dtype):
    """What the allocator had at most is within the bound that was computed from the configuration."""
    model = reward_model(size, dtype, "cuda")
    scorer = TrieScorer(model, HeadChoice(), most_nodes=CHUNK, masks=masks_of(model, kind, CHUNK, LONGEST))
    bound = trie_bytes(ForwardShape.of(model), most_nodes=CHUNK, longest=LONGEST, blocks=kind == "blocks")
    demand_room(bound, most=None, device=model.device, lower="")
    work = variants(prompt=900, n_spans=8, span=10, n_prompts=2)
    scorer.score([work], ignore)
    peak = peak_bytes("cuda", lambda: scorer.score([work], ignore))
    print(f"{size}, {kind}, {dtype}: {peak / 2**20:.1f} MiB of {bound / 2**20:.1f}")  # noqa: T201 - a figure to keep
    assert peak <= bound
    assert free_bytes(model.device) > 0


def test_a_padded_batch_takes_no_more_than_was_said():
    """The same of batches of like length."""
    model = reward_model("34 M", torch.bfloat16, "cuda")
    scorer = LengthScorer(model, HeadChoice(), most_tokens=8192, pad_id=0)
    work = variants(prompt=300, n_spans=6, span=20)
    scorer.score([work], ignore)
    peak = peak_bytes("cuda", lambda: scorer.score([work], ignore))
    assert peak <= batch_bytes(ForwardShape.of(model), most_tokens=8192, longest=LONGEST)
