import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines.answer_heads import Float32Weights, policy_head  # noqa: E402
from creditd.engines.gradient import gradient_tokens, gradients  # noqa: E402
from creditd.engines.noise import normal_noise  # noqa: E402
from creditd.engines.policy_loading import backbone_of  # noqa: E402
from creditd.engines.policy_passes import Passes  # noqa: E402
from creditd.engines.policy_protocol import SensitivityOptions  # noqa: E402
from engines.policies import (  # noqa: E402
    PROBES,
    SHARING,
    STATEFUL,
    item_of,
    passes_of,
    plain_change,
    plain_outcome,
    plain_perturbation,
    policy,
    tokens_of,
)

FINITE_DIFFERENCES = 1e-4
"""Of the largest sensitivity, against central differences in float64."""
FLOAT32 = 2e-3
"""The same in float32: a gradient that vanishes without noise is a small difference of large terms."""
BATCHES = 1e-3
"""The same between batches, in which sums are made in other orders."""
STEP = 1e-4


class WideHead:
    """The linear head of a model in its own type."""

    averages = True

    def __init__(self, model):
        self._head = model.get_output_embeddings()

    def __call__(self, states):
        """Logits."""
        return self._head(states)


def measured(model, items, *, head=None, shares=True, **options):
    """Sensitivities by the gradient."""
    chosen = SensitivityOptions("gradient", **options)
    return gradients(passes_of(model, shares=shares), head or policy_head(model), items, chosen, pad_id=0)


def one(model, item, **more):
    """Those of one item."""
    return measured(model, [item], **more)[0].sensitivities


def noise_at(item, seed, draw, width):
    """Noise of the measured tokens, by their places counted from the first of them."""
    places = item.positions - item.positions[0]
    return normal_noise(seed, draw, int(places[-1]) + 1, width)[places]


def by_differences(model, item, probe, *, seed=0, draw=0, noise_std=1e-3):
    """|dJ/dε| for e_t + ε·e_t at noisy embeddings, by plain transformers and central differences in float64."""
    text = torch.from_numpy(np.concatenate([item.prompt_ids, item.completion_ids]))[None]
    clean = model.get_input_embeddings()(text)
    places = len(item.prompt_ids) + item.positions
    noise = noise_at(item, seed, draw, clean.shape[-1])
    noisy = clean.clone()
    noisy[0, places] += noise_std * torch.from_numpy(noise).double()
    target = plain_outcome(model, item, probe, embeddings=clean)
    found = []
    for place in places:
        moved = []
        for step in (STEP, -STEP):
            here = noisy.clone()
            here[0, place] += step * clean[0, place]
            moved.append(float(plain_change(target, plain_outcome(model, item, probe, embeddings=here), probe)))
        found.append(abs(moved[0] - moved[1]) / (2 * STEP))
    return np.array(found)


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", ["gpt_neox", "gpt2"])
def test_sensitivities_are_those_of_finite_differences(name, probe):
    """Of two layers in float64, all through: the norm of Llama and its kin rounds to float32 whatever its type."""
    model, item = policy(name, dtype=torch.float64), item_of(prompt=6, reasoning=10)
    expected = by_differences(model, item, probe)
    found = one(model, item, head=WideHead(model), probe=probe)
    assert np.abs(found - expected).max() <= FINITE_DIFFERENCES * expected.max()
    assert expected.min() > 0.0


def plain_gradient(model, item, probe, *, noise_std=1e-3):
    """|⟨∇_{e_t} J, e_t⟩| by plain transformers, whole rows and one item at a time."""
    text = torch.from_numpy(np.concatenate([item.prompt_ids, item.completion_ids]))[None]
    clean = model.get_input_embeddings()(text)
    places = len(item.prompt_ids) + item.positions
    leaf = clean.clone()
    noise = torch.from_numpy(noise_at(item, 0, 0, clean.shape[-1]))
    leaf[0, places] += noise_std * noise.to(leaf.dtype)
    leaf.requires_grad_()
    target = plain_outcome(model, item, probe, embeddings=clean)
    change = plain_change(target, plain_outcome(model, item, probe, embeddings=leaf), probe)
    (gradient,) = torch.autograd.grad(change, leaf)
    return (gradient * clean).sum(dim=-1)[0, places].abs().numpy()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", [*SHARING, *STATEFUL])
def test_sensitivities_in_float32_are_those_of_plain_transformers(name, probe):
    """Of every family, with clean beginnings where there are keys and values, and whole rows where there are not."""
    item = item_of(prompt=8, reasoning=16)
    found = one(policy(name), item, probe=probe, shares=name in SHARING)
    # torch has no experts in float64.
    exact = policy(name) if name == "mixtral" else policy(name, dtype=torch.float64)
    expected = plain_gradient(exact, item, probe)
    assert np.abs(found - expected).max() <= FLOAT32 * expected.max()


def test_tokens_that_are_not_measured_take_noise_from_no_other():
    """A token has the noise of its place: what of the reasoning others wrote changes nothing of it."""
    model, places = policy("llama, tied"), [2, 3, 7, 8, 12]
    item = item_of(prompt=8, reasoning=16, measured=places)
    expected = plain_gradient(policy("llama, tied", dtype=torch.float64), item, "answer_mean")
    assert np.abs(one(model, item) - expected).max() <= FLOAT32 * expected.max()
    batch = measured(model, [item_of(4, prompt=5, reasoning=3), item])
    assert np.abs(batch[1].sensitivities - expected).max() <= FLOAT32 * expected.max()


def test_a_policy_in_bfloat16_is_measured_in_float32():
    """With a copy of its weights, to the last bit what the same weights in float32 have; the model stays as it is."""
    short, item = policy("llama, tied", dtype=torch.bfloat16), item_of()
    weights = Float32Weights.of(short)
    before = {name: one.clone() for name, one in short.state_dict().items()}
    head = type(policy_head(short))(short, weights=weights)
    passes = Passes(backbone_of(short, weights), short.get_input_embeddings(), short.device)
    options = SensitivityOptions("gradient")
    found = gradients(passes, head, [item], options, pad_id=0)[0].sensitivities
    wide = policy("llama, tied", dtype=torch.bfloat16).float()
    assert np.array_equal(found, one(wide, item))
    assert all(torch.equal(before[name], one) for name, one in short.state_dict().items())
    with pytest.raises(ValueError, match=r"computed in float32: got torch\.bfloat16"):
        one(short, item)


def test_weights_in_float32_are_not_copied():
    """A copy has those alone that are shorter."""
    assert Float32Weights.of(policy()).copies == {}
    assert len(Float32Weights.of(policy(dtype=torch.bfloat16)).copies) == len(list(policy().parameters()))


def test_the_batch_changes_nothing_but_rounding():
    """With others of other lengths, prompts and measured tokens, in any order."""
    model = policy()
    items = [
        item_of(1),
        item_of(2, prompt=3, reasoning=50, answer=1),
        item_of(3, prompt=40, reasoning=7),
        item_of(4, measured=[2, 3, 11]),
    ]
    for probe in PROBES:
        alone = [one(model, item, probe=probe) for item in items]
        together = measured(model, items, probe=probe)
        backwards = measured(model, items[::-1], probe=probe)[::-1]
        for by_itself, first, second in zip(alone, together, backwards, strict=True):
            assert np.abs(by_itself - first.sensitivities).max() <= BATCHES * by_itself.max()
            assert np.abs(by_itself - second.sensitivities).max() <= BATCHES * by_itself.max()


def test_copies_in_a_batch_have_the_same_noise():
    """What four copies differ by is rounding: noise depends on the place in the reasoning alone."""
    copies = measured(policy(), [item_of()] * 4)
    for copy in copies:
        assert np.allclose(copy.sensitivities, copies[0].sensitivities, rtol=0, atol=BATCHES * copy.sensitivities.max())


def test_draws_are_averaged_and_their_spread_is_told():
    """mean_t(sd_t/√draws)/mean_t(s_t), of draws that are each what one draw says."""
    model, item = policy("gpt2", dtype=torch.float64), item_of(prompt=6, reasoning=10)
    found = measured(model, [item], head=WideHead(model), noise_samples=4, seed=3)[0]
    draws = np.stack([by_differences(model, item, "answer_mean", seed=3, draw=draw) for draw in range(4)])
    mean = draws.mean(axis=0)
    assert np.abs(found.sensitivities - mean).max() <= FINITE_DIFFERENCES * mean.max()
    spread = (draws.std(axis=0, ddof=1) / 2).mean() / mean.mean()
    assert found.spread == pytest.approx(spread, rel=1e-3)
    assert measured(model, [item], head=WideHead(model))[0].spread is None


def test_more_draws_are_known_better_and_a_likelihood_needs_one():
    """The relative error of a divergence falls with the draws, from about .76; a likelihood has almost none."""
    model, item = policy(), item_of()
    few, many = (measured(model, [item], noise_samples=draws)[0].spread for draws in (4, 64))
    assert many < 0.5 * few
    assert 0.4 < few * 2 < 1.1
    assert measured(model, [item], noise_samples=4, probe="answer_joint")[0].spread < 0.1


def test_no_weight_has_a_gradient_and_random_numbers_stay():
    """Neither of a frozen model nor of one in training; torch's own generator is not drawn from."""
    model = policy()
    model.requires_grad_(requires_grad=True)
    before = torch.get_rng_state()
    one(model, item_of())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.get_input_embeddings()._forward_hooks


def ranks(values):
    """Ranks of values."""
    return np.argsort(np.argsort(values))


def rank_correlation(first, second):
    """Spearman's."""
    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def test_both_methods_and_other_seeds_rank_tokens_alike():
    """Reported: rank correlation between seeds, and with perturbation; more draws agree more."""
    model = policy("gpt2", noise=0.3)
    between, many, across = [], [], []
    for seed in range(8):
        item = item_of(seed, reasoning=40)
        first, second = (one(model, item, seed=draw) for draw in (0, 1))
        better, other = (one(model, item, seed=draw, noise_samples=32) for draw in (0, 1))
        between.append(rank_correlation(first, second))
        many.append(rank_correlation(better, other))
        across.append(rank_correlation(better, plain_perturbation(model, item, "answer_mean", 0)))
    print(  # noqa: T201 - what was measured is worth more than that it passed
        f"rank correlation between two seeds, one draw: {np.mean(between):.2f}; 32 draws: {np.mean(many):.2f}; "
        f"of 32 draws with perturbation: {np.mean(across):.2f}"
    )
    assert np.mean(many) > np.mean(between) > 0.2
    assert np.mean(across) > 0.2


def test_tokens_are_told_beforehand():
    """Those that go forward, but for what fills up rows."""
    model, item = policy(), item_of()
    for shares in (True, False):
        with tokens_of(model) as tokens:
            measured(model, [item, item], shares=shares, noise_samples=3)
        # The head is looked at before, by two passes of its own.
        assert sum(tokens[2:]) == gradient_tokens([item, item], 3, shares=shares)
