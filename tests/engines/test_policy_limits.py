"""What long answers and many items take of a policy: memory that was said before, and steps that are counted once."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines import outcome_probes, policy_memory  # noqa: E402
from creditd.engines.answer_heads import policy_head  # noqa: E402
from creditd.engines.gradient import gradients  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.perturbation import perturbed  # noqa: E402
from creditd.engines.policy_engine import PolicyEngine  # noqa: E402
from creditd.engines.policy_loading import LoadedPolicy, measuring_bytes  # noqa: E402
from creditd.engines.policy_protocol import SensitivityOptions  # noqa: E402
from creditd.engines.policy_work import Distinct  # noqa: E402
from engines.architectures import VOCABULARY  # noqa: E402
from engines.policies import PROBES, item_of, passes_of, policy, saved_policy  # noqa: E402
from engines.shapes import peak_bytes  # noqa: E402

WIDE_AGREEMENT = 1e-9
"""Of the largest sensitivity, in float64."""
WAIT_S = 120
LONGEST, WIDE = 300, 60_000


class Watched:
    """A head in the type of its model, with or without a soft cap; notes how many states it is asked at once."""

    def __init__(self, model, cap):
        self._head, self._cap, self.asked = model.get_output_embeddings(), cap, []

    @property
    def averages(self):
        """Whether it is linear."""
        return self._cap is None

    def __call__(self, states):
        """Logits."""
        self.asked.append(len(states))
        logits = self._head(states)
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)


def both(model, head, item, probe):
    """Sensitivities by perturbation and by the gradient."""
    by_perturbation = perturbed(passes_of(model), head, item, probe=probe, token_id=0, most_tokens=200)
    options = SensitivityOptions("gradient", probe, noise_samples=2)
    return by_perturbation, gradients(passes_of(model), head, [item], options, pad_id=0)[0].sensitivities


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("probe", PROBES)
def test_logits_are_few_however_long_the_answer_is(probe, cap, monkeypatch):
    """Some positions at a time, or one: the same numbers, of heads with a soft cap as well."""
    model, item = policy("gpt2", dtype=torch.float64), item_of(prompt=6, reasoning=10, answer=9)
    usual = both(model, Watched(model, cap), item, probe)
    for most in (2 * VOCABULARY + 1, VOCABULARY // 2):
        monkeypatch.setattr(outcome_probes, "MOST_LOGITS", most)
        head = Watched(model, cap)
        for found, expected in zip(both(model, head, item, probe), usual, strict=True):
            assert np.abs(found - expected).max() <= WIDE_AGREEMENT * np.abs(expected).max()
        assert max(head.asked) == max(1, most // VOCABULARY)


def with_many_tokens(name):
    """A policy whose logits are most of what it takes."""
    made = policy(name)
    config = type(made.config)(**{**made.config.to_dict(), "vocab_size": WIDE})
    torch.manual_seed(0)
    return type(made)(config).eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("method", ["perturbation", "gradient"])
@pytest.mark.parametrize("probe", ["answer_mean", "answer_joint"])
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_long_answers_take_no_more_than_was_said(name, probe, method):
    """Whatever fits into the longest sequence: an answer may be nearly all of it."""
    model, item = with_many_tokens(name), item_of(prompt=2, reasoning=3, conclusion=0, answer=LONGEST - 4)
    head, options = policy_head(model), SensitivityOptions(method, probe)

    def work():
        if method == "perturbation":
            perturbed(passes_of(model), head, item, probe=probe, token_id=0, most_tokens=LONGEST)
        else:
            gradients(passes_of(model), head, [item], options, pad_id=0)

    work()
    assert peak_bytes("cpu", work) <= measuring_bytes(model, most_tokens=LONGEST, longest=LONGEST, shares=True)


@pytest.fixture
def engine(tmp_path):
    """A small policy."""
    saved_policy(tmp_path / "policy")
    made = PolicyEngine.load(ModelSpec("policy", Path("policy"), kind="policy"), tmp_path)
    yield made
    made.close(1.0)


def test_rows_of_a_batch_are_as_many_as_clean_outcomes_have_room(engine, monkeypatch):
    """The clean distribution of each row is kept while the batch is measured."""
    items = [item_of(seed, prompt=3, reasoning=4) for seed in range(7)]
    assert [len(batch) for batch in engine._loaded.batches(items)] == [7]
    monkeypatch.setattr(policy_memory, "MOST_CLEAN", 3 * VOCABULARY)
    assert [len(batch) for batch in engine._loaded.batches(items)] == [3, 3, 1]
    monkeypatch.setattr(policy_memory, "MOST_CLEAN", 1)
    assert len(list(engine._loaded.batches(items))) == 7


@pytest.mark.parametrize("method", ["perturbation", "gradient"])
def test_tokens_of_items_are_counted_once_and_by_nobody_who_cannot_wait(engine, method, monkeypatch):
    """While a request is prepared; the loop that submits it does nothing for each item."""
    counted = []
    n_tokens = LoadedPolicy.n_tokens
    monkeypatch.setattr(LoadedPolicy, "n_tokens", lambda self, *asked: counted.append(asked) or n_tokens(self, *asked))
    items = [item_of(seed, prompt=3, reasoning=4) for seed in range(5)]
    prepared = engine.prepared_sensitivities(items, SensitivityOptions(method))
    assert len(counted) == len(items)
    found = engine.sensitivities(prepared).result(WAIT_S)
    assert len(counted) == len(items)
    assert found.usage.tokens_computed == sum(n_tokens(engine._loaded, *asked) for asked in counted)


class Unsearched(tuple):
    """Places that nobody looks through for each item."""

    __slots__ = ()

    def index(self, *_what):
        """Refuse to."""
        pytest.fail("looked through all items for one of them")


def test_preparing_is_linear_and_ends_in_every_loop_when_nobody_waits(engine, monkeypatch):
    """What asks whether anybody waits is asked for each item: while they are checked, compared, and put in slices."""
    items = [item_of(seed, prompt=3, reasoning=4) for seed in range(5)] * 2
    of = Distinct.of
    monkeypatch.setattr(Distinct, "of", lambda *asked: Distinct(of(*asked).items, Unsearched(of(*asked).places)))
    asked = []
    prepared = engine.prepared_sensitivities(items, SensitivityOptions("gradient"), checkpoint=lambda: asked.append(1))
    assert prepared.usage.evaluations == 5 * 2
    assert len(asked) == 10 + 2 * 10 + 5

    class GoneError(Exception):
        """Nobody waits any more."""

    for n_calls in (3, 13, 32):
        left = iter(range(n_calls))

        def leave(left=left):
            if next(left, None) is None:
                raise GoneError

        with pytest.raises(GoneError):
            engine.prepared_sensitivities(items, SensitivityOptions("gradient"), checkpoint=leave)
