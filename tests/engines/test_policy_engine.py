from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.credit.reshaping import ReshapeOptions, reshape_weights  # noqa: E402
from creditd.engines import policy_engine  # noqa: E402
from creditd.engines.errors import (  # noqa: E402
    EngineExpiredError,
    EngineStoppedError,
    ModelUnsuitableError,
    WeightVersionUnknownError,
)
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.policy_engine import PolicyEngine  # noqa: E402
from creditd.engines.policy_protocol import SensitivityOptions, WeightPin  # noqa: E402
from engines.architectures import POSITIONS, VOCABULARY  # noqa: E402
from engines.policies import PROBES, STATEFUL, item_of, plain_perturbation, saved_policy  # noqa: E402
from engines.saved import tokenizer  # noqa: E402

WAIT_S = 120
PERTURBED, BY_GRADIENT = SensitivityOptions("perturbation"), SensitivityOptions("gradient")
AGREEMENT = 1e-5
BATCHES = 1e-3
"""Of the largest sensitivity: as in the tests of the two methods."""


@pytest.fixture
def engine_of(tmp_path):
    """Makes engines of policies that are saved for it, closed when the test is over."""
    made = []

    def load(name="qwen3", special=None, **choices):
        folder = name.replace(" ", "_").replace(",", "")
        if not (tmp_path / folder).exists():
            saved_policy(tmp_path / folder, name, **(special or {}))
        spec = ModelSpec("policy", Path(folder), kind="policy", **choices)
        made.append(PolicyEngine.load(spec, tmp_path))
        return made[-1]

    yield load
    for engine in made:
        engine.close(1.0)


def asked(engine, items, options, **how):
    """What an engine says of items."""
    return engine.sensitivities(engine.prepared_sensitivities(items, options, **how)).result(WAIT_S)


def close(found, expected, share):
    """Whether two agree to a share of the largest."""
    return np.abs(found - expected).max() <= share * np.abs(expected).max()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gpt2", *STATEFUL])
def test_an_engine_says_what_plain_transformers_say(engine_of, name, probe):
    """Models that go on from keys and values, and one that reads whole rows; the answer names the weights."""
    engine = engine_of(name)
    item = item_of()
    found = asked(engine, [item], replace(PERTURBED, probe=probe))
    assert close(found.sensitivities[0], plain_perturbation(engine._loaded.model, item, probe, 0), AGREEMENT)
    assert found.weight_version == engine.weight_version == engine.status().fingerprint
    assert found.spreads == (None,)
    assert not found.failures
    assert engine.status().reads_tries == (name not in STATEFUL)
    assert not engine.is_remembered


@pytest.mark.parametrize("options", [PERTURBED, replace(BY_GRADIENT, noise_samples=3)])
def test_identical_completions_have_identical_weights(engine_of, options):
    """To the last bit, in a batch with others and by themselves in two requests."""
    engine = engine_of()
    item, other = item_of(), item_of(1, reasoning=50)
    found = asked(engine, [item, other, item, item, item], options)
    weights = [reshape_weights(found.sensitivities[place], ReshapeOptions()).weights.tolist() for place in (0, 2, 3, 4)]
    assert weights[0] == weights[1] == weights[2] == weights[3]
    assert found.spreads[0] == found.spreads[4]
    alone = [asked(engine, items, options, alone=True).sensitivities[0].tolist() for items in ([item], [item, other])]
    assert alone[0] == alone[1]


@pytest.mark.parametrize("options", [PERTURBED, BY_GRADIENT])
def test_what_else_is_asked_changes_nothing_but_rounding(engine_of, options):
    """Items in one request, in several at a time, and each by itself."""
    engine = engine_of(batch_tokens=512)
    items = [item_of(seed, reasoning=10 + 7 * seed, prompt=3 + seed) for seed in range(6)]
    alone = [asked(engine, [item], options).sensitivities[0] for item in items]
    together = asked(engine, items, options).sensitivities
    prepared = [engine.prepared_sensitivities(items[part::3], options) for part in range(3)]
    queued = [engine.sensitivities(one) for one in prepared]
    for part, future in enumerate(queued):
        for found, expected in zip(future.result(WAIT_S).sensitivities, alone[part::3], strict=True):
            assert close(found, expected, BATCHES)
    for found, expected in zip(together, alone, strict=True):
        assert close(found, expected, BATCHES)


@pytest.mark.parametrize("options", [PERTURBED, BY_GRADIENT])
def test_large_works_are_run_in_slices(engine_of, options, monkeypatch):
    """Others have their turn between; one long completion is cut by perturbation, and its numbers stay."""
    whole = asked(engine_of(), [item_of(reasoning=90), item_of(1)], options)
    monkeypatch.setattr(policy_engine, "SLICE_BATCHES", 1)
    engine = engine_of(batch_tokens=150, chunk_tokens=100)
    prepared = engine.prepared_sensitivities([item_of(reasoning=90), item_of(1)], options)
    assert len(prepared.work.slices) >= 2
    found = engine.sensitivities(prepared).result(WAIT_S)
    assert engine.status().n_batches >= 2
    for one, expected in zip(found.sensitivities, whole.sensitivities, strict=True):
        assert close(one, expected, BATCHES)


def test_bfloat16_is_measured_by_both_methods(engine_of):
    """By the gradient in float32, to what the same weights in float32 have; the weights stay in bfloat16."""
    short, item = engine_of(dtype="bfloat16"), item_of()
    model = short._loaded.model
    assert model.dtype == torch.bfloat16
    found = asked(short, [item], BY_GRADIENT).sensitivities[0]
    perturbed = asked(short, [item], PERTURBED).sensitivities[0]
    wide = plain_perturbation(model.float(), item, "answer_mean", 0)
    assert close(perturbed, wide, 0.2)
    exact = asked(engine_of(), [item], BY_GRADIENT).sensitivities[0]
    assert np.corrcoef(found, exact)[0, 1] > 0.95


def test_tokens_to_perturb_with(engine_of):
    """The padding token by default; a named one; one that is not in the vocabulary is refused."""
    engine, item = engine_of(), item_of()
    found = asked(engine, [item], replace(PERTURBED, perturbation_id=9)).sensitivities[0]
    assert close(found, plain_perturbation(engine._loaded.model, item, "answer_mean", 9), AGREEMENT)
    assert not close(found, asked(engine, [item], PERTURBED).sensitivities[0], 0.1)
    for wrong in (VOCABULARY, -1):
        with pytest.raises(ModelUnsuitableError, match=f"got token {wrong} to perturb with"):
            engine.prepared_sensitivities([item], replace(PERTURBED, perturbation_id=wrong))


@pytest.mark.parametrize(("special", "why"), [({"pad_token": "<eos>"}, "the end of a text as well")])
def test_the_end_of_a_text_is_never_taken_in_silence(engine_of, special, why):
    """Where padding is the end, a token has to be named; the gradient needs none."""
    engine, item = engine_of(special=special), item_of()
    with pytest.raises(ModelUnsuitableError, match=why):
        engine.prepared_sensitivities([item], PERTURBED)
    assert asked(engine, [item], replace(PERTURBED, perturbation_id=0)).sensitivities[0].max() > 0.0
    assert asked(engine, [item], BY_GRADIENT).sensitivities[0].max() > 0.0


@pytest.mark.parametrize(
    "wrong", [{"noise_std": 0.0}, {"noise_std": float("nan")}, {"noise_samples": 0}, {"seed": -1}, {"seed": 2**64}]
)
def test_options_outside_their_ranges_are_refused(engine_of, wrong):
    """Before anything is run."""
    with pytest.raises(ValueError, match="expected"):
        engine_of().prepared_sensitivities([item_of()], replace(BY_GRADIENT, **wrong))


def test_items_that_cannot_be_measured_fail_by_themselves(engine_of):
    """Each with its reason; others are measured."""
    engine, good = engine_of(), item_of()
    strange = item_of()
    strange.completion_ids[3] = VOCABULARY
    items = [
        item_of(prompt=POSITIONS),
        good,
        replace(good, answer=(30, 30)),
        replace(good, answer=(34, 90)),
        replace(good, positions=np.array([3, 2])),
        replace(good, positions=np.array([34])),
        replace(good, prompt_ids=np.empty(0, dtype=np.int64), positions=np.empty(0, dtype=np.int64), answer=(0, 2)),
        strange,
    ]
    for options in (PERTURBED, BY_GRADIENT):
        found = asked(engine, items, options)
        assert {place: failure.code for place, failure in found.failures.items()} == {
            0: "context_exceeded", 2: "invalid_request", 3: "invalid_request", 4: "invalid_request",
            5: "invalid_request", 6: "invalid_request", 7: "invalid_request",
        }  # fmt: skip
        assert close(found.sensitivities[1], asked(engine, [good], options).sensitivities[0], BATCHES)


def test_what_fits_is_the_text_up_to_the_answer(engine_of):
    """A completion that goes on beyond the model's positions is measured, because nobody reads its end."""
    item = item_of(prompt=100, reasoning=140, conclusion=10, answer=6, after=200)
    assert asked(engine_of(), [item], BY_GRADIENT).sensitivities[0].shape == (140,)


def test_completions_without_measured_tokens_have_none(engine_of):
    """Alone and beside others, without any work for them."""
    engine, empty = engine_of(), item_of(measured=[])
    empty = replace(empty, positions=np.empty(0, dtype=np.int64))
    found = asked(engine, [empty], BY_GRADIENT)
    assert found.sensitivities[0].shape == (0,)
    assert found.weight_version == engine.weight_version
    assert found.usage.tokens_computed == engine.status().n_batches == 0
    both = asked(engine, [empty, item_of()], PERTURBED)
    assert [len(one) for one in both.sensitivities] == [0, 30]
    with pytest.raises(WeightVersionUnknownError):
        engine.sensitivities(engine.prepared_sensitivities([empty], PERTURBED), pin=WeightPin("never"))


def test_numbers_that_are_not_finite_are_a_failure(engine_of):
    """Of the item that has them, by its name."""
    engine = engine_of()
    broken = item_of(1)
    broken.completion_ids[2] = 299
    engine._loaded.model.get_input_embeddings().weight[299] = float("nan")
    for options in (PERTURBED, BY_GRADIENT):
        found = asked(engine, [broken, item_of()], options)
        assert found.failures[0].code == "non_finite_utility"
        assert np.isnan(found.sensitivities[0]).all()
        assert np.isfinite(found.sensitivities[1]).all()


def test_costs_are_told_before_and_after(engine_of):
    """Copies cost once; clean beginnings are computed once."""
    engine, item = engine_of(), item_of(reasoning=40)
    prepared = engine.prepared_sensitivities([item] * 3, PERTURBED)
    n_tokens = 12 + 40 + 4 + 3 - 1
    assert prepared.usage.evaluations == 41
    assert prepared.usage.tokens_naive == 3 * 41 * n_tokens
    assert prepared.usage.tokens_computed < 0.7 * 41 * n_tokens
    found = engine.sensitivities(prepared).result(WAIT_S)
    assert found.usage.tokens_computed == prepared.usage.tokens_computed
    assert found.usage.engine_s > 0.0
    by_gradient = engine.prepared_sensitivities([item], replace(BY_GRADIENT, noise_samples=2))
    assert by_gradient.usage.tokens_computed == n_tokens + 2 * (n_tokens - 12)


def test_pins_deadlines_and_the_end(engine_of):
    """As every engine: unknown versions at once, late work unasked, nothing after the end."""
    engine = engine_of()
    prepared = engine.prepared_sensitivities([item_of()], PERTURBED)
    with pytest.raises(WeightVersionUnknownError):
        engine.sensitivities(prepared, pin=WeightPin("never"))
    own = engine.sensitivities(prepared, pin=WeightPin(engine.weight_version)).result(WAIT_S)
    assert own.weight_version == engine.weight_state().current
    with pytest.raises((EngineExpiredError, CancelledError)):
        engine.sensitivities(prepared, expires_s=0.0).result(WAIT_S)
    engine.close()
    with pytest.raises(EngineStoppedError):
        engine.sensitivities(prepared)


def test_a_policy_tells_the_text_of_tokens(engine_of):
    """For parsers of answers; tokens outside the vocabulary are refused."""
    engine = engine_of()
    ids = tokenizer()("the quick é 1 2")["input_ids"]
    text, offsets = engine.completion_text(ids)
    assert text == "the quick é 1 2"
    assert len(offsets) == len(ids)
    with pytest.raises(ValueError, match="got token 300"):
        engine.completion_text([*ids, VOCABULARY])


def test_weights_have_no_gradient_and_torch_draws_nothing(engine_of):
    """Before and after being asked."""
    engine = engine_of()
    before = torch.get_rng_state()
    asked(engine, [item_of()], BY_GRADIENT)
    model = engine._loaded.model
    assert not model.training
    assert all(one.grad is None and not one.requires_grad for one in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
