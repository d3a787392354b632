from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = [
    pytest.mark.models,
    # Of transformers' new names, which peft and older versions do not have.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

import torch  # noqa: E402

from creditd.engines import in_process  # noqa: E402
from creditd.engines.answer_heads import policy_head  # noqa: E402
from creditd.engines.gradient import gradients  # noqa: E402
from creditd.engines.in_process import measure_sensitivities  # noqa: E402
from creditd.engines.policy_protocol import SensitivityOptions  # noqa: E402
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
from engines.process_pairs import in_two_processes  # noqa: E402
from engines.two_measurers import OPTIONS, items_of, trained  # noqa: E402

PERTURBED = SensitivityOptions("perturbation", perturbation_id=0)
BY_GRADIENT = SensitivityOptions("gradient")
AGREEMENT = 1e-5
BATCHES = 1e-3
"""Of the largest sensitivity: as in the tests of the two methods."""


def close(found, expected, share):
    """Whether two agree to a share of the largest."""
    return np.abs(np.subtract(found, expected)).max() <= share * np.abs(expected).max()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("name", [*SHARING, *STATEFUL])
def test_a_model_is_measured_as_an_engine_measures_it(name, probe):
    """Through the whole model, with logits where they are read alone; of every family."""
    model, items = policy(name), [item_of(), item_of(1, reasoning=12, prompt=20)]
    found = measure_sensitivities(model, items, replace(PERTURBED, probe=probe), most_tokens=256)
    for one, item in zip(found, items, strict=True):
        assert close(one.sensitivities, plain_perturbation(model, item, probe, 0), AGREEMENT)
        assert one.spread is None
    options = replace(BY_GRADIENT, probe=probe, noise_samples=2)
    expected = gradients(passes_of(model, shares=name in SHARING), policy_head(model), items, options, pad_id=0)
    for one, by_engine in zip(measure_sensitivities(model, items, options), expected, strict=True):
        assert close(one.sensitivities, by_engine.sensitivities, BATCHES)
        assert one.spread == pytest.approx(by_engine.spread, rel=1e-2)


def test_a_model_in_training_is_left_as_it_was():
    """Its modes, gradients and random numbers; with dropout and checkpoints of gradients it is measured without."""
    model, item = trained(), item_of()
    model.gradient_checkpointing_enable()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    kept = {name: torch.randn_like(one) for name, one in model.named_parameters()}
    for name, one in model.named_parameters():
        one.grad = kept[name].clone()
    frozen = next(model.parameters())
    frozen.requires_grad = False
    before = torch.get_rng_state()
    first = [measure_sensitivities(model, [item], options)[0].sensitivities for options in (PERTURBED, BY_GRADIENT)]
    again = [measure_sensitivities(model, [item], options)[0].sensitivities for options in (PERTURBED, BY_GRADIENT)]
    assert [one.tolist() for one in first] == [one.tolist() for one in again]
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(one.grad, kept[name]) for name, one in model.named_parameters())
    assert [one.requires_grad for one in model.parameters()].count(False) == 1
    assert not frozen.requires_grad


def test_a_model_is_left_as_it_was_after_an_error():
    """As it is after an answer."""
    model = trained()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivities(model, [item_of()], BY_GRADIENT, beat=stop)
    assert all(module.training for module in model.modules())
    assert all(one.requires_grad for one in model.parameters())


def test_a_model_in_bfloat16_is_measured_in_float32_by_the_gradient():
    """With a copy of its weights for as long as it takes, under autocast as well."""
    short, item = policy(dtype=torch.bfloat16), item_of()
    expected = measure_sensitivities(policy(dtype=torch.bfloat16).float(), [item], BY_GRADIENT)[0].sensitivities
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measure_sensitivities(short, [item], BY_GRADIENT)[0].sensitivities
    assert close(found, expected, BATCHES)
    assert short.dtype == torch.bfloat16


def test_a_model_with_an_adapter_is_measured_with_it():
    """As peft wraps it; other numbers than without."""
    peft = pytest.importorskip("peft", reason="the lane `models` installs peft")
    item = item_of()
    plain = measure_sensitivities(policy("llama"), [item], PERTURBED)[0].sensitivities
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(policy("llama"), config)
    found = measure_sensitivities(model, [item], PERTURBED)[0].sensitivities
    assert close(found, plain_perturbation(model.eval(), item, "answer_mean", 0), AGREEMENT)
    assert not close(found, plain, 0.01)
    gradient = measure_sensitivities(model, [item], BY_GRADIENT)[0].sensitivities
    assert np.isfinite(gradient).all()
    assert all(one.grad is None for one in model.parameters())


def test_copies_and_completions_without_measured_tokens():
    """Copies have one vector; where nothing is measured there is nothing, and no pass for it."""
    model, item = policy(), item_of()
    empty = replace(item, positions=np.empty(0, dtype=np.int64))
    for options in (PERTURBED, BY_GRADIENT):
        found = measure_sensitivities(model, [item, empty, item, item], options)
        assert found[0].sensitivities.tolist() == found[2].sensitivities.tolist() == found[3].sensitivities.tolist()
        assert found[1].sensitivities.shape == (0,)
        with tokens_of(model) as tokens:
            assert measure_sensitivities(model, [empty], options)[0].spread is None
        assert tokens == []


@pytest.mark.parametrize("options", [PERTURBED, replace(BY_GRADIENT, noise_samples=3)])
def test_every_process_makes_as_many_passes_as_the_largest(options):
    """What is agreed on is what is run, whatever this process has to do itself, also if that is nothing."""
    model = policy()
    for items in ([], [item_of()], [item_of(seed, reasoning=10 + 20 * seed) for seed in range(4)]):
        told = []

        def more(count, told=told):
            told.append(count)
            return count + 3

        with tokens_of(model) as tokens:
            measure_sensitivities(model, items, options, most_tokens=150, agree=more)
        of_a_unit = 1 if options.method == "perturbation" else 1 + options.noise_samples
        assert len(told) == 1
        assert len(tokens) == (told[0] + 3) * of_a_unit


def test_logits_of_a_pass_are_few(monkeypatch):
    """Fewer rows go together where each has many logits; the numbers stay."""
    model, items = policy(), [item_of(), item_of(1)]
    usual = [measure_sensitivities(model, items, options) for options in (PERTURBED, BY_GRADIENT)]
    monkeypatch.setattr(in_process, "MOST_PASS_LOGITS", 2 * 3 * model.config.vocab_size)
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _module, _inputs, made: seen.append(made.numel()))
    few = [measure_sensitivities(model, items, options) for options in (PERTURBED, BY_GRADIENT)]
    handle.remove()
    assert max(seen) <= in_process.MOST_PASS_LOGITS
    for one, other in zip(usual, few, strict=True):
        for first, second in zip(one, other, strict=True):
            assert close(first.sensitivities, second.sensitivities, BATCHES)


def test_what_cannot_be_measured_is_refused_before_any_pass():
    """By all processes: no token to perturb with, no token before the answer, places out of order."""
    model, item, told = policy(), item_of(), []
    nothing = np.empty(0, dtype=np.int64)
    for wrong, options in (
        (item, replace(PERTURBED, perturbation_id=None)),
        (replace(item, prompt_ids=nothing, positions=nothing, answer=(0, 2)), PERTURBED),
        (replace(item, answer=(30, 90)), PERTURBED),
        (replace(item, positions=np.array([4, 3])), BY_GRADIENT),
        (replace(item, positions=np.array([34])), BY_GRADIENT),
    ):
        with tokens_of(model) as tokens, pytest.raises(ValueError, match="expected"):
            measure_sensitivities(model, [wrong], options, agree=told.append)
        assert tokens == []
        assert told.pop() == in_process.REFUSED


@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp1 with parameters", "fsdp2"])
def test_two_processes_of_unequal_length_measure_a_sharded_model(kind):
    """None waits for ever; numbers are those of the whole model; training goes on, and so does measuring after it."""
    model = trained()
    for rank, told in enumerate(in_two_processes("two_measurers.py", kind)):
        assert told["refused"] == []
        assert len(told["found"]) == 2 * len(OPTIONS)
        for number, found in enumerate(told["found"]):
            expected = measure_sensitivities(model, items_of(rank), OPTIONS[number % len(OPTIONS)], most_tokens=128)
            for one, whole in zip(found, expected, strict=True):
                assert close(one, whole.sensitivities, BATCHES)


def test_a_sharded_model_that_computes_in_bfloat16_has_no_gradient_in_silence():
    """Both processes are told; by perturbation it is measured."""
    for told in in_two_processes("two_measurers.py", "fsdp2 in bfloat16"):
        assert len(told["refused"]) == 4
        assert all("computed in float32: got torch.bfloat16" in why for why in told["refused"])
        assert len(told["found"]) == 2
