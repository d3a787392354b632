import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.model_spec import HeadChoice  # noqa: E402
from creditd.engines.reward_head import RewardHead  # noqa: E402
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants, is_causal  # noqa: E402
from creditd.engines.self_check import (  # noqa: E402
    LEAST_SPREAD,
    _variants,
    check_tries,
    declared_window,
    least_spread,
)
from engines.architectures import BIDIRECTIONAL, CAUSAL, WINDOWED, made  # noqa: E402
from engines.shapes import SHAPES, ignore, reward_model  # noqa: E402

AGREEMENT = 1e-5
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def logits_of(model, sequences):
    """What the model itself says of sequences, one by one."""
    with torch.inference_mode():
        return torch.cat([model(torch.from_numpy(row)[None]).logits for row in sequences]).double().numpy()


def variants(*rows):
    """Rows of token ids as a work."""
    return Variants(tuple(np.array(row, dtype=np.int64) for row in rows))


WORKS = (variants([5, 6, 7], [5, 6], [5, 6, 7], [9]), variants([5, 6, 8, 9, 10, 11, 12]))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("most", [2, 100])
def test_tries_and_lengths_give_the_models_own_scores(name, most):
    """Both ways of scoring give what the model says of each sequence, in the order of works and sequences."""
    model = made(name)
    expected = [logits_of(model, work.sequences)[:, 0] for work in WORKS]
    trie = TrieScorer(model, HeadChoice(), most_nodes=most)
    lengths = LengthScorer(model, HeadChoice(), most_tokens=4 * most, pad_id=0)
    for found in (trie.score(WORKS, ignore), lengths.score(WORKS, ignore)):
        assert [part.shape for part in found] == [(4,), (1,)]
        assert np.concatenate(found) == pytest.approx(np.concatenate(expected), abs=AGREEMENT)
    assert [trie.n_tokens(work) for work in WORKS] == [4, 7]
    assert [lengths.n_tokens(work) for work in WORKS] == [6, 7]
    assert WORKS[0].n_naive == 9


@pytest.mark.parametrize("name", BIDIRECTIONAL)
@settings(max_examples=10)
@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=9),
    most=st.integers(1, 40),
)
def test_bidirectional_models_are_scored_by_length(name, rows, most):
    """Padding and company change nothing but rounding, and each sequence has the score of the model's own head."""
    model, work = made(name), variants(*rows)
    found = LengthScorer(model, HeadChoice(), most_tokens=most, pad_id=0).score([work], ignore)
    assert found[0] == pytest.approx(logits_of(model, work.sequences)[:, 0], abs=AGREEMENT)


def test_forward_passes_keep_to_their_budget():
    """No pass has more tokens than the budget, padding included, but for one sequence that is longer by itself."""
    model = made("bert")
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda _module, _inputs, options: sizes.append(options["input_ids"].shape), with_kwargs=True
    )
    beats = []
    scorer = LengthScorer(model, HeadChoice(), most_tokens=12, pad_id=0)
    sizes.clear()
    work = variants(*([1 + n % 5] * (1 + n % 6) for n in range(20)), [7] * 30)
    scorer.score([work], lambda: beats.append(len(sizes)))
    handle.remove()
    assert all(rows * columns <= 12 or rows == 1 for rows, columns in sizes)
    assert beats == list(range(len(sizes)))
    assert sum(rows for rows, _ in sizes) == len(work.distinct[0])


@pytest.mark.parametrize("name", [*CAUSAL, *WINDOWED, *BIDIRECTIONAL])
def test_who_reads_from_left_to_right_is_found_out(name):
    """Causality is a property of the model's arithmetic, and not of its name."""
    assert is_causal(made(name)) is (name not in BIDIRECTIONAL)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (HeadChoice(index=1), lambda logits: logits[:, 1]),
        (HeadChoice(margin=(1, 0)), lambda logits: logits[:, 1] - logits[:, 0]),
        (HeadChoice(margin=(1, 0), activation="sigmoid"), lambda x: 1 / (1 + np.exp(x[:, 0] - x[:, 1]))),
        (HeadChoice(index=2, activation="log_sigmoid"), lambda x: -np.log1p(np.exp(-x[:, 2]))),
    ],
)
def test_the_choice_of_a_head_decides_between_labels(choice, expected):
    """An index, a margin and an activation are those of the model's own logits."""
    model = made("llama", num_labels=3)
    found = TrieScorer(model, choice, most_nodes=50).score(WORKS[:1], ignore)[0]
    assert found == pytest.approx(expected(logits_of(model, WORKS[0].sequences)), abs=AGREEMENT)


def test_an_unsuitable_head_is_refused():
    """Several labels without a choice, labels that are not there, and a model without a head."""
    model = made("llama", num_labels=2)
    with pytest.raises(ModelUnsuitableError, match=r"2 labels; expected one, or a choice: head\.index"):
        RewardHead(model, HeadChoice())
    with pytest.raises(ModelUnsuitableError, match=r"2 labels; got the labels \[2, 0\]"):
        RewardHead(model, HeadChoice(margin=(2, 0)))
    with pytest.raises(ModelUnsuitableError, match="LlamaModel has no head"):
        RewardHead(model.base_model, HeadChoice())
    with pytest.raises(ValueError, match="got both"):
        HeadChoice(index=0, margin=(1, 0))


def test_the_head_computes_in_float32():
    """A model in bfloat16 has a head in float32: scores of states that differ by little stay apart."""
    model = made("qwen3").bfloat16()
    head = RewardHead(model, HeadChoice())
    assert {parameter.dtype for parameter in head.module.parameters()} == {torch.float32}
    states = torch.ones((2, 32), dtype=torch.float32)
    states[1] += 1e-4
    assert np.ptp(head(states)) > 0
    assert next(model.score.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_models_that_take_any_mask_pass_their_check(name, dtype):
    """In every float type the trie is off by no more than the model's own rounding."""
    for seed in range(3):
        checked = check_tries(made(name).to(dtype), seed=seed)
        assert checked.passed, checked
        assert checked.failure is None


STEPS = ((torch.bfloat16, 2.5), (torch.float16, 2.5), (torch.float32, 7.5))
"""Largest error that was measured on any processor, in steps of the type at the largest score, and a little more."""


@pytest.mark.parametrize(
    ("name", "dtype", "most"),
    [*((name, *steps) for name in CAUSAL for steps in STEPS), ("34 M", *STEPS[0]), ("34 M", *STEPS[2])],
)
def test_rounding_is_as_small_as_was_measured(name, dtype, most):
    """The documented bound, in steps of the type at the largest score, is what was measured and little more."""
    model = reward_model(name, dtype) if name in SHAPES else made(name).to(dtype)
    for seed in range(3 if name in CAUSAL else 1):
        checked = check_tries(model, seed=seed)
        scores = LengthScorer(model, HeadChoice(index=0), most_tokens=1, pad_id=0).score(
            [_variants(model, seed)], ignore
        )
        assert checked.error <= most * least_spread(dtype, scores[0]) / LEAST_SPREAD[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", WINDOWED)
def test_models_with_a_window_fail_their_check(name, dtype):
    """A model that looks at the last tokens alone cannot read a trie, and is not trusted with one in any type."""
    for seed in range(3):
        checked = check_tries(made(name).to(dtype), seed=seed)
        assert not checked.passed
        assert checked.failure is None
        assert checked.error > 10 * checked.spread


@pytest.mark.parametrize(("window", "failure"), [(200, None), (4096, "a window of 4096 tokens")])
def test_a_window_longer_than_the_check_does_not_hide(window, failure):
    """Prompts of the check are longer than the window; one that is too long for that is taken at its word."""
    model = made("mistral with a window", sliding_window=window, layer_types=None, max_position_embeddings=8192)
    checked = check_tries(model)
    assert (checked.passed, checked.failure) == (False, failure)


def test_windows_are_those_in_use():
    """Qwen2 carries a window that it does not use; Gemma 2 uses one in every other layer."""
    assert declared_window(made("qwen2")) is None
    assert declared_window(made("llama")) is None
    assert declared_window(made("gemma2")) == 8
    assert declared_window(made("mistral with a window")) == 8


def test_attention_in_chunks_is_a_window():
    """Llama 4 reads chunks of positions in some layers: what is farther apart than a chunk is not seen."""
    model = made("llama")
    model.config.attention_chunk_size = 16
    assert declared_window(model) == 16
    model.config.layer_types = ["full_attention", "full_attention"]
    assert declared_window(model) is None
    model.config.layer_types = ["chunked_attention", "full_attention"]
    assert declared_window(model) == 16


def test_positions_that_depend_on_the_length_do_not_hide():
    """LongRoPE turns long texts otherwise than short ones: a trie has both, and the check has short ones alone."""
    model = made("llama")
    model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    assert check_tries(model).failure == "positions that depend on the length beyond 64 tokens"
    assert check_tries(model, longest=64).passed


def test_batches_do_not_straddle_the_length_at_which_positions_turn():
    """A short text in a batch with a long one would be read with the positions of long texts."""
    model = made("llama")
    model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 6}
    sizes = []
    scorer = LengthScorer(model, HeadChoice(), most_tokens=1000, pad_id=0)
    handle = model.base_model.embed_tokens.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    scorer.score([variants([1] * 5, [1] * 7, [2] * 6, [3] * 9)], ignore)
    handle.remove()
    assert sizes == [(2, 6), (2, 9)]


def test_a_window_that_no_sequence_reaches_is_none():
    """Sequences that are no longer than the window are seen whole, and tries of them are read."""
    model = made("mistral with a window", sliding_window=128)
    assert declared_window(model, 129) == 128
    assert declared_window(model, 128) is None
    assert check_tries(model, longest=128).passed
    assert not check_tries(model, longest=129).passed


def test_scores_in_batches_keep_no_keys_and_values(monkeypatch):
    """Nothing comes after the last token of a batch, so the model is told to keep nothing."""
    model, told = made("llama"), []
    original = model.base_model.forward
    monkeypatch.setattr(
        model.base_model,
        "forward",
        lambda *a, **options: told.append(options.get("use_cache")) or original(*a, **options),
    )
    scorer = LengthScorer(model, HeadChoice(), most_tokens=8, pad_id=0)
    told.clear()
    scorer.score(WORKS, ignore)
    assert told
    assert not any(told)
