"""Rollouts whose advantages are reshaped, without a trainer: answers, failure policies, weights handed over."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from adapters.policy_service import sensed
from creditd.adapters.sensitivity import (
    CurrentWeights,
    ReasonedRollout,
    asked_of_service,
    plain_advantages,
    settled,
    unasked,
)
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.client import (
    Client,
    InvalidRequestError,
    PartialResultError,
    TransportError,
    WeightsRefusedError,
    WeightVersionUnknownError,
)
from services import running_service

SERVICE = Path(__file__).with_name("policy_service.py")
FIRST = "v0"
"""The version of a policy that nobody gave weights."""
CONFIG = SensitivityConfig(parser="hashes", model="policy")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service with the policy, which reads 24 tokens at most."""
    directory = tmp_path_factory.mktemp("policy")
    with running_service('{"max_tokens": 24}', script=SERVICE, directory=directory) as address:
        yield address


def rollout(text="ab cd #### 7", advantage=1.0, written=None, prompt=(5, 6)):
    """A completion whose tokens are characters."""
    return ReasonedRollout(
        prompt_ids=prompt,
        completion_ids=tuple(map(ord, text)),
        text=text,
        offsets=tuple((place, place + 1) for place in range(len(text))),
        written=written,
        advantage=advantage,
    )


ROLLOUTS = [rollout(advantage=0.5), rollout("so 3 #### 8", -1.5), rollout("no answer", 0.25), rollout("x #### 1", 0.75)]


def asked(url, rollouts=ROLLOUTS, config=CONFIG, group_size=2, **options):
    """What the service says."""
    with Client(url, **options) as client:
        return asked_of_service(client, config, rollouts, group_size, FIRST)


def outcome(ask):
    """What is returned, or what is raised."""
    try:
        return ask()
    except (PartialResultError, TransportError, InvalidRequestError) as error:
        return error


def by_hand(one):
    """Weights of a rollout from the known sensitivities, reshaped in this process."""
    values = [sensed(FIRST, token) for token in one.completion_ids]
    with Client("local:") as client:
        return client.oar(
            sensitivities=[values],
            completions=[one.text],
            token_offsets=[one.offsets],
            completion_masks=None if one.written is None else [one.written],
            advantages=[1.0],
            parser="hashes",
        ).weights[0]


def test_token_advantages_are_advantages_times_weights(url):
    """Those of the policy's sensitivities; where no answer is found, the advantage itself."""
    found = settled(asked(url), CONFIG, ROLLOUTS)
    for one, tokens, weights in zip(ROLLOUTS, found.token_advantages, found.weights, strict=True):
        np.testing.assert_array_equal(weights, by_hand(one))
        np.testing.assert_array_equal(tokens, one.advantage * weights)
    assert found.token_advantages[2].tolist() == [0.25] * len("no answer")
    assert len(set(found.weights[0].tolist())) > 2
    assert (found.weight_version, found.failure) == (FIRST, None)
    assert found.request_id is not None
    metrics = found.metrics
    assert metrics["credit/fallbacks"] == metrics["credit/errors"] == 0.0
    assert metrics["credit/answer_not_found"] == 0.25
    assert 0.0 < metrics["credit/effective_share"] < 1.0
    assert metrics["credit/top_share"] < 1.0
    assert metrics["credit/tokens_computed"] > 0
    assert "credit/spread" not in metrics


def test_advantages_of_tokens_are_weighed_each(url):
    """What something else gave each token is multiplied by the weight of the token."""
    base = np.linspace(-1.0, 1.0, len(ROLLOUTS[0].completion_ids))
    rollouts = [rollout(advantage=base), rollout("x #### 1", 0.75)]
    found = settled(asked(url, rollouts), CONFIG, rollouts)
    np.testing.assert_array_equal(found.token_advantages[0], base * by_hand(rollouts[0]))
    np.testing.assert_array_equal(found.token_advantages[1], 0.75 * by_hand(rollouts[1]))


def test_tokens_of_others_get_nothing(url):
    """Exactly 0, with weights and without."""
    written = (True, False, *[True] * 10)
    rollouts = [rollout(written=written), rollout()]
    found = settled(asked(url, rollouts), CONFIG, rollouts)
    np.testing.assert_array_equal(found.weights[0], by_hand(rollouts[0]))
    assert found.token_advantages[0][1] == 0.0
    assert plain_advantages(rollouts[0]).tolist() == [1.0, 0.0, *[1.0] * 10]


def test_constant_weights_leave_every_bit(url):
    """With floor 1 and β 0 each token has the advantage itself."""
    config = replace(CONFIG, reshape={"floor": 1.0, "beta": 0.0})
    rollouts = [rollout(advantage=0.1), rollout("so 3 #### 8", -1 / 3)]
    found = settled(asked(url, rollouts, config), config, rollouts)
    assert [set(row.tolist()) for row in found.token_advantages] == [{0.1}, {-1 / 3}]


def test_nobody_is_asked_about_completions_without_contrast(url):
    """No token of theirs is read, their groups stay whole, and they are counted apart from failures and answers."""
    none = np.zeros(len(ROLLOUTS[0].completion_ids))
    hidden = rollout("x #### 1", 0.5, written=(False,) * 8)
    rollouts = [ROLLOUTS[0], rollout("so 3 #### 8", 0.0), rollout(advantage=none), hidden]
    assert [one.has_contrast for one in rollouts] == [True, False, False, False]
    answer = asked(url, rollouts)
    assert answer.n_reweighted.tolist() == [6, 0, 0, 0]
    assert answer.usage.evaluations == asked(url, rollouts[:1], group_size=1).usage.evaluations > 0
    found = settled(answer, CONFIG, rollouts)
    alone = settled(asked(url, rollouts[:1], group_size=1), CONFIG, rollouts[:1])
    np.testing.assert_array_equal(found.token_advantages[0], alone.token_advantages[0])
    assert not any(row.any() for row in found.token_advantages[1:])
    assert found.weights[1:] == [None] * 3
    assert found.metrics["credit/without_contrast"] == 0.75
    for name in ("credit/reweighted", "credit/effective_share", "credit/answer_not_found", "credit/fallbacks"):
        assert found.metrics[name] == alone.metrics[name]


def test_fallbacks_are_a_share_of_what_was_asked():
    """Completions without contrast miss nothing."""
    rollouts = [rollout(advantage=0.0), *ROLLOUTS]
    failure = TransportError("gone")
    found = settled(failure, replace(CONFIG, on_failure="group_reward"), rollouts)
    assert found.metrics == {"credit/fallbacks": 1.0, "credit/errors": 1.0, "credit/without_contrast": 0.2}
    assert unasked(rollouts[:1]).metrics == {
        "credit/fallbacks": 0.0,
        "credit/errors": 0.0,
        "credit/without_contrast": 1.0,
    }


def test_a_completion_that_fails_falls_back_alone(url):
    """Its own advantage stays on its tokens; under `raise` nothing is trained on."""
    rollouts = [*ROLLOUTS[:3], rollout("far too long for this policy #### 1", 0.75)]
    failure = outcome(lambda: asked(url, rollouts))
    assert isinstance(failure, PartialResultError)
    with pytest.raises(PartialResultError, match="row 3"):
        settled(failure, CONFIG, rollouts)
    found = settled(failure, replace(CONFIG, on_failure="group_reward"), rollouts)
    assert found.weights[3] is None
    assert set(found.token_advantages[3].tolist()) == {0.75}
    np.testing.assert_array_equal(found.weights[0], by_hand(rollouts[0]))
    assert (found.metrics["credit/fallbacks"], found.metrics["credit/errors"]) == (0.25, 1.0)
    assert found.failure is failure


def test_a_lost_service_leaves_the_plain_advantages():
    """Counted as such; under `raise` the error is raised."""
    failure = outcome(lambda: asked("http://127.0.0.1:9", deadline_s=0.3))
    assert isinstance(failure, TransportError)
    with pytest.raises(TransportError):
        settled(failure, CONFIG, ROLLOUTS)
    found = settled(failure, replace(CONFIG, on_failure="group_reward"), ROLLOUTS)
    assert [set(row.tolist()) for row in found.token_advantages] == [{0.5}, {-1.5}, {0.25}, {0.75}]
    assert found.metrics == {"credit/fallbacks": 1.0, "credit/errors": 1.0, "credit/without_contrast": 0.0}
    assert (found.request_id, found.weight_version) == (None, None)


def test_a_fault_of_the_configuration_is_raised_under_every_policy(url):
    """A policy that does not exist, and a group of another size, are no failures of the service."""
    plain = replace(CONFIG, on_failure="group_reward")
    with pytest.raises(InvalidRequestError):
        settled(outcome(lambda: asked(url, group_size=3, rollouts=ROLLOUTS[:2])), CONFIG, ROLLOUTS[:2])
    refused = WeightsRefusedError("no", status=422, code="weights_refused")
    with pytest.raises(WeightsRefusedError):
        settled(refused, plain, ROLLOUTS)


@dataclass(frozen=True)
class Cost:
    """What a push cost."""

    seconds: float = 0.5
    n_bytes: int = 10


class Service:
    """Knows some versions, and forgets them when it is restarted."""

    def __init__(self):
        self.known, self.pushed, self.asked, self.dead = set(), [], [], False

    def push(self, version):
        """Take weights."""
        if self.dead:
            raise TransportError("gone")
        self.pushed.append(version)
        self.known.add(version)
        return Cost()

    def ask(self, version):
        """Answer for a version."""
        self.asked.append(version)
        if version not in self.known:
            raise WeightVersionUnknownError("unknown", status=409, code="weight_version_unknown")
        return version


def test_weights_are_handed_over_when_the_step_changed():
    """Before the first question, once for each step that is asked about, and never twice."""
    service = Service()
    weights = CurrentWeights(service.push)
    versions = [weights.answer(service.ask, step) for step in (0, 0, 1, 4, 4)]
    assert [version.rpartition(":")[2] for version in versions] == ["0", "0", "1", "4", "4"]
    assert len(service.pushed) == 3
    assert len({version.rpartition(":")[0] for version in versions}) == 1
    assert weights.taken() == {"credit/push_seconds": 1.5, "credit/push_bytes": 30.0, "credit/pushes": 3.0}
    assert weights.taken() == {"credit/push_seconds": 0.0, "credit/push_bytes": 0.0, "credit/pushes": 0.0}


def test_a_restarted_service_is_given_the_weights_once_more():
    """And asked once more: one repetition, in all."""
    service = Service()
    weights = CurrentWeights(service.push)
    weights.answer(service.ask, 3)
    service.known.clear()
    service.asked.clear()
    assert weights.answer(service.ask, 3) == service.pushed[-1]
    assert (len(service.asked), len(service.pushed)) == (2, 2)
    assert service.pushed[0] == service.pushed[1]


def test_a_service_that_forgets_at_once_is_not_asked_for_ever():
    """The second refusal is raised."""
    service = Service()
    weights = CurrentWeights(lambda _: Cost())
    with pytest.raises(WeightVersionUnknownError):
        weights.answer(service.ask, 0)
    assert len(service.asked) == 2


def test_a_push_that_loses_a_part_is_repeated_once():
    """A service that is restarted between two shards says that it lost the first."""
    tries = []

    def push(version):
        tries.append(version)
        if len(tries) == 1:
            raise WeightVersionUnknownError("lost", status=409, code="weight_version_unknown")
        return Cost()

    weights = CurrentWeights(push)
    weights.bring(0)
    weights.bring(0)
    assert len(tries) == 2


def test_weights_that_never_arrived_are_handed_over_the_next_time():
    """A failed push leaves nothing behind that passes for weights."""
    service = Service()
    weights = CurrentWeights(service.push)
    service.dead = True
    with pytest.raises(TransportError):
        weights.answer(service.ask, 0)
    service.dead = False
    weights.answer(service.ask, 0)
    assert len(service.pushed) == 1


def test_a_run_that_begins_has_a_name_of_its_own():
    """Its step begins again, and its weights are others."""
    service = Service()
    weights = CurrentWeights(service.push, "night")
    first = weights.answer(service.ask, 0)
    weights.begin()
    second = weights.answer(service.ask, 0)
    assert first != second
    assert first.startswith("night-")
    assert weights.lag_of(second, 2) == 2
    assert weights.lag_of(first, 2) is weights.lag_of(None, 2) is weights.lag_of("other", 2) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": None}, "neither"),
        ({"in_process": True}, "the model 'policy' and in_process"),
        ({"on_failure": "mask"}, "on_failure 'mask'"),
        ({"deterministic": 1}, "deterministic 1"),
        ({"deadline_s": 0}, "deadline_s 0"),
        ({"push_deadline_s": "long"}, "push_deadline_s 'long'"),
        ({"most_tokens": True}, "most_tokens True"),
        ({"max_credit_share": -1}, "max_credit_share -1"),
        ({"run": ""}, "run ''"),
        ({"parser": "given"}, "'given'"),
        ({"sensitivity": "given"}, "'given'"),
        ({"parser": "guess"}, "/parser"),
        ({"sensitivity": {"type": "gradient", "noise_samples": 0}}, "/sensitivity"),
        ({"probe": "first"}, "/probe"),
        ({"reshape": {"quantile": 1.5}}, "/reshape/quantile"),
        ({"reshape": {"gamma": 1}}, "/reshape/gamma"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_written_down(options, words):
    """By name, before anything is asked."""
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        SensitivityConfig(**{"parser": "tags", "model": "policy"} | options)
