import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines.answer_heads import policy_head  # noqa: E402
from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.outcome_probes import measured_places, read_tokens  # noqa: E402
from creditd.engines.perturbation import (  # noqa: E402
    MOST_ROWS,
    READ_AGAIN,
    groups_of,
    padding_to_perturb,
    perturbation_passes,
    perturbation_tokens,
    perturbed,
)
from engines.policies import (  # noqa: E402
    PROBES,
    SHARING,
    STATEFUL,
    item_of,
    passes_of,
    plain_perturbation,
    policy,
    tokens_of,
)
from engines.saved import tokenizer  # noqa: E402

AGREEMENT = 1e-5
"""Of the largest sensitivity; float32 rounds logits of 1 to 1e-7, and small divergences are differences of them."""
BFLOAT16 = 0.2
"""The same where states are rounded to eight bits."""
AGAIN = READ_AGAIN["cpu"]


def measured(model, item, *, probe="answer_mean", shares=True, most_tokens=100, **more):
    """Sensitivities by perturbation with the padding token."""
    passes = passes_of(model, shares=shares)
    return perturbed(passes, policy_head(model), item, probe=probe, token_id=0, most_tokens=most_tokens, **more)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", SHARING)
def test_sensitivities_are_those_of_a_loop_of_full_forward_passes(name, probe):
    """Of every family and probe: rows that go on from a clean beginning change nothing but rounding."""
    model, item = policy(name), item_of()
    expected = plain_perturbation(model, item, probe, 0)
    found = measured(model, item, probe=probe)
    assert np.abs(found - expected).max() <= AGREEMENT * np.abs(expected).max()
    assert np.abs(expected).max() > 1e-4
    if probe == "answer_joint":
        assert (expected < 0).any()
    else:
        assert (found > -1e-12).all()


@pytest.mark.parametrize("probe", PROBES)
def test_a_model_without_keys_and_values_reads_whole_rows(probe):
    """The same numbers, in padded batches of whole texts."""
    (name,) = STATEFUL
    model, item = policy(name), item_of()
    expected = plain_perturbation(model, item, probe, 0)
    found = measured(model, item, probe=probe, shares=False)
    assert np.abs(found - expected).max() <= AGREEMENT * np.abs(expected).max()


@pytest.mark.parametrize("most_tokens", [1, 60, 4096])
@pytest.mark.parametrize("places", [[0], [0, 1, 2, 3], [5, 6, 20, 28, 29], list(range(30))])
def test_the_size_of_passes_and_gaps_change_nothing(places, most_tokens):
    """From one row a pass to all of them, with some tokens measured alone."""
    model, item = policy(), item_of(measured=places)
    expected = plain_perturbation(model, item, "answer_mean", 0)
    found = measured(model, item, most_tokens=most_tokens)
    assert found.shape == (len(places),)
    assert np.abs(found - expected).max() <= AGREEMENT * np.abs(expected).max()


def test_an_answer_right_behind_the_reasoning_and_at_the_end():
    """The last token of the reasoning predicts the first one of the answer; the answer ends the completion."""
    model, item = policy(), item_of(conclusion=0, after=0, answer=1)
    for probe in PROBES:
        expected = plain_perturbation(model, item, probe, 0)
        assert np.abs(measured(model, item, probe=probe) - expected).max() <= AGREEMENT * np.abs(expected).max()


def test_what_comes_after_the_answer_is_not_read():
    """Nor is the last token of the answer, but for its likelihood."""
    item = item_of()
    other = item_of()
    other.completion_ids[item.answer[1] :] = 7
    assert np.array_equal(read_tokens(item), read_tokens(other))
    assert len(read_tokens(item)) == len(item.prompt_ids) + item.answer[1] - 1
    model = policy()
    assert np.array_equal(measured(model, item), measured(model, other))


def test_a_token_that_is_replaced_by_itself_has_none():
    """Exactly 0, while others have some."""
    item = item_of()
    item.completion_ids[4] = 0
    for probe in PROBES:
        found = measured(policy(), item, probe=probe)
        assert found[4] == 0.0
        assert (np.delete(found, 4) != 0.0).all()


def test_in_bfloat16_logits_are_made_in_float32():
    """Numbers of a policy in bfloat16 are those of the same weights in float32, as far as its states tell."""
    model, item = policy(dtype=torch.bfloat16), item_of()
    expected = plain_perturbation(policy(dtype=torch.bfloat16).float(), item, "answer_mean", 0)
    found = measured(model, item)
    assert np.abs(found - expected).max() <= BFLOAT16 * expected.max()


def test_passes_and_tokens_are_told_beforehand():
    """What is said to be computed is what is computed, with clean beginnings and without."""
    model = policy()
    head = policy_head(model)
    for shares in (True, False):
        for item in (item_of(), item_of(measured=[0, 9, 10, 25])):
            sizes = {"most_tokens": 150, "read_again": AGAIN, "shares": shares}
            with tokens_of(model) as tokens:
                perturbed(passes_of(model, shares=shares), head, item, probe="last", token_id=0, most_tokens=150)
            assert len(tokens) == perturbation_passes(item, **sizes)
            assert sum(tokens) == perturbation_tokens(item, **sizes)


def test_groups_have_every_place_once_within_their_limits():
    """Rows, tokens and clean tokens that are read again stay within what is allowed, but for one long row."""
    random = np.random.default_rng(0)
    for _ in range(200):
        n_tokens = int(random.integers(2, 300))
        places = np.flatnonzero(random.random(n_tokens - 1) < random.random())
        most, again = int(random.integers(1, 500)), int(random.integers(0, 20))
        groups = list(groups_of(places, n_tokens, most_tokens=most, read_again=again))
        assert np.array_equal(np.concatenate([places[group] for group in groups] or [places]), places)
        for group in groups:
            own = places[group]
            assert own[-1] - own[0] <= again
            assert len(own) <= MOST_ROWS
            assert len(own) * (n_tokens - own[0]) <= most or len(own) == 1


def test_most_tokens_are_computed_once():
    """256 tokens of reasoning cost little more than the tokens of their distinct prefixes."""
    item = item_of(prompt=64, reasoning=256, conclusion=12, answer=5)
    n_tokens = len(read_tokens(item))
    least = n_tokens + int((n_tokens - measured_places(item)).sum())
    assert perturbation_tokens(item, most_tokens=1024, read_again=AGAIN, shares=True) <= 1.06 * least
    assert perturbation_tokens(item, most_tokens=1024, read_again=AGAIN, shares=False) == 257 * n_tokens


def test_the_padding_token_is_taken_where_it_stands_for_nothing_else():
    """Never the end of a text in silence, whichever of the two says what that is."""
    config, made = policy().config, tokenizer()
    config.eos_token_id = 2
    assert padding_to_perturb(made, config) == made.pad_token_id == 0
    config.eos_token_id = [5, 0]
    with pytest.raises(ModelUnsuitableError, match="the end of a text as well; expected a token_id"):
        padding_to_perturb(made, config)
    config.eos_token_id = 2
    made.pad_token = made.eos_token
    with pytest.raises(ModelUnsuitableError, match="the end of a text as well; expected a token_id"):
        padding_to_perturb(made, config)
    made.pad_token = None
    with pytest.raises(ModelUnsuitableError, match="no padding token; expected a token_id"):
        padding_to_perturb(made, config)
