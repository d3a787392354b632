"""Candidates that a reward model of the service scores, without any trainer framework."""

import json

import httpx
import numpy as np
import pytest

from creditd.adapters.credit_config import CreditConfig
from creditd.adapters.prompts import readable
from creditd.adapters.rollouts import Creditor, Rollout
from creditd.client import Client, CreditdError, InvalidRequestError, NotFoundError, PartialResultError
from creditd.client.bodies import Body
from creditd.client.exchanges import answer_text
from creditd.client.local import shapley_result
from creditd.wire import codec

WORTH = {"a": 0.9, "b": 0.1, "c": 0.4, "curse": float("nan")}
BATCH = [["a", "b"], ["c", "c"], ["a"], []]
CURSED = [["a", "curse"], ["c"], ["a"], ["b"]]
COST = {"evaluations": 4, "from_cache": 2, "tokens_computed": 30, "tokens_naive": 40, "engine_s": 0.0}


def rollouts(texts, *, rewards=False, base=0.5):
    """One rollout per row of texts, whose candidates are one token each."""
    return [
        Rollout(
            n_tokens=len(row) + 1,
            texts=tuple(row),
            spans=tuple((place, place + 1) for place in range(len(row))),
            rewards=tuple(WORTH[text] if rewards else None for text in row),
            set_reward=None,
            base_advantage=base,
            prompt=[{"role": "user", "content": "?"}],
        )
        for row in texts
    ]


class Service:
    """A service whose model knows what each text is worth."""

    def __init__(self):
        self.bodies = []

    def __call__(self, request):
        """Answer with the credit of those rewards, and the cost of asking."""
        asked = codec.decode(request.content, arrays=True)
        self.bodies.append(asked)
        columns = {name: column for name, column in asked["columns"].items() if name not in {"prompts", "row_splits"}}
        splits = np.asarray(asked["columns"]["row_splits"])
        columns["rewards"] = {"values": [WORTH[text] for text in columns["texts"]], "row_splits": splits.tolist()}
        body = codec.encode({name: part for name, part in asked.items() if name != "rewards"} | {"columns": columns})
        try:
            result = shapley_result(Body(content=body, row_splits=splits, media_type=codec.MEDIA_TYPE), "r")
        except InvalidRequestError as error:
            items = [{"code": one.code, "pointer": one.pointer, "detail": one.detail} for one in error.items]
            return httpx.Response(422, json={"code": error.code, "detail": "nothing", "errors": items})
        document = json.loads(answer_text(result))
        document["usage"] |= COST
        return httpx.Response(200, json=document | {"model": "rm"})


def creditor(handler, policy="raise", **config):
    """A creditor whose candidates a model scores."""
    client = Client("http://credit", transport=httpx.MockTransport(handler), deadline_s=0.01)
    return Creditor(CreditConfig(on_failure=policy, **config), client, model="rm")


def test_credit_and_utilities_are_those_of_the_same_rewards():
    """One request has prompts and texts, and its answer all that a trainer wants."""
    service = Service()
    ask = creditor(service)
    answered = ask.answer(rollouts(BATCH), 2, 0)
    here = Creditor(CreditConfig(url="local:"))
    known = rollouts(BATCH, rewards=True)
    expected = here.credit(known, 2, 0)
    for given, wanted in zip(answered.token_advantages, expected.token_advantages, strict=True):
        np.testing.assert_array_equal(given, wanted)
    assert answered.utilities == here.utilities([one.rewards for one in known], BATCH) == [0.9, 0.4, 0.9, 0.0]
    (body,) = service.bodies
    assert body["rewards"] == {"type": "model", "model": "rm"}
    assert body["columns"]["prompts"] == [[{"role": "user", "content": "?"}]] * 4
    costs = {f"credit/{name}": value for name, value in COST.items() if name != "engine_s"}
    assert {name: answered.metrics[name] for name in costs} == costs
    assert not expected.metrics.keys() & costs.keys()


def test_deterministic_travels_where_a_model_reads():
    """It is a wish of the configuration, and says nothing where the rewards are known."""
    bodies = []
    for deterministic in (False, True):
        service = Service()
        creditor(service, deterministic=deterministic).answer(rollouts(BATCH), 2, 0)
        bodies += service.bodies
    assert [body.get("deterministic") for body in bodies] == [None, True]
    known = rollouts(BATCH, rewards=True)
    same = [Creditor(CreditConfig(url="local:", deterministic=wish)).credit(known, 2, 0) for wish in (False, True)]
    for given, wanted in zip(same[0].token_advantages, same[1].token_advantages, strict=True):
        np.testing.assert_array_equal(given, wanted)
    with pytest.raises(ValueError, match="got deterministic 'yes'; expected True or False"):
        CreditConfig(deterministic="yes")


def test_a_batch_without_candidates_is_worth_the_failure_reward():
    """Row splits alone say how many sets there are."""
    answered = creditor(Service(), malformed={"failure_reward": -2.0}).answer(rollouts([[], []]), 2, 0)
    assert answered.utilities == [-2.0, -2.0]
    assert [row.tolist() for row in answered.token_advantages] == [[0.0], [0.0]]


@pytest.mark.parametrize("policy", ["group_reward", "mask"])
def test_a_set_without_a_number_costs_its_group(policy):
    """The trainer's own advantage, or 0; the utility of that set alone is unknown, so that it has 0 in any case."""
    ask = creditor(Service(), policy)
    answered = ask.answer(rollouts(CURSED), 2, 0)
    assert answered.utilities == [None, 0.4, 0.9, 0.1]
    assert [row is None for row in answered.token_advantages] == [True, True, False, False]
    settled = ask.settle(answered, [0.25, -0.25, 1.0, 1.0])
    first = [row.tolist() for row in settled.token_advantages[:2]]
    assert first == ([[0.0] * 3, [-0.25] * 2] if policy == "group_reward" else [[0.0] * 3, [0.0] * 2])
    assert settled.metrics["credit/fallbacks"] == 0.5
    with pytest.raises(PartialResultError):
        creditor(Service()).answer(rollouts(CURSED), 2, 0)


def test_a_lost_service_leaves_no_group_half_known():
    """Nobody knows what the model would have said; failure rewards are known in groups that have nothing else."""

    def refusing(_):
        raise httpx.ConnectError("refused")

    answered = creditor(refusing, "mask", malformed={"failure_reward": -1.0}).answer(rollouts([*BATCH, [], []]), 2, 0)
    assert answered.utilities == [None, None, None, None, -1.0, -1.0]
    assert answered.token_advantages == [None] * 6
    assert answered.request_id is None


def test_a_group_of_failures_and_sets_without_a_number_is_unknown():
    """Failures would be compared by other rewards alone; beside a set that has a number they are known."""
    ask = creditor(Service(), "group_reward", malformed={"failure_reward": -1.0})
    answered = ask.answer(rollouts([["curse"], [], [], ["curse"], ["a"], []]), 3, 0)
    assert answered.utilities == [None, None, None, None, 0.9, -1.0]
    settled = ask.settle(answered, [0.5] * 6)
    assert [float(row[0]) for row in settled.token_advantages] == [0.0, 0.0, 0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("status", "code", "pointer", "falls_back"),
    [
        (502, "engine_failed", None, True),
        (422, "context_exceeded", "/columns/texts/0", True),
        (422, "budget_exceeded", "", False),
        (404, "unknown_model", "/rewards/model", False),
    ],
)
def test_what_another_try_cannot_heal_is_no_lost_service(status, code, pointer, falls_back):
    """A model that fails, and texts that it cannot read, are the failure policy's; a name or a limit never is."""
    errors = [] if pointer is None else [{"code": code, "pointer": pointer, "detail": "no"}]
    ask = creditor(lambda _: httpx.Response(status, json={"code": code, "detail": "no", "errors": errors}), "mask")
    if falls_back:
        assert ask.answer(rollouts(BATCH), 2, 0).metrics["credit/fallbacks"] == 1.0
        return
    with pytest.raises((NotFoundError, InvalidRequestError), match=code) as caught:
        ask.answer(rollouts(BATCH), 2, 0)
    assert isinstance(caught.value, CreditdError)


def test_where_there_is_no_model_it_is_refused_at_once():
    """In local mode, and by a policy that would compute without the service."""
    with pytest.raises(ValueError, match=r"got the model 'rm' .* expected the address of a service that has it"):
        Creditor(CreditConfig(url="local:"), model="rm")
    with pytest.raises(ValueError, match=r"on_failure='local': without the service there are no rewards"):
        Creditor(CreditConfig(url="http://credit", on_failure="local"), model="rm")
    with pytest.raises(ValueError, match="the id of a reward model takes the place of the candidate reward function"):
        CreditConfig(utility={"type": "model", "model": "rm"})


MESSAGES = [{"role": "system", "content": "brief"}, {"role": "user", "content": "?"}]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ask one", "ask one"),
        ("", ""),
        (MESSAGES, MESSAGES),
        ([message | {"tool_calls": None} for message in MESSAGES], MESSAGES),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [{"role": "user", "content": "ab"}],
        ),
    ],
)
def test_prompts_of_trainers_are_those_of_the_wire(prompt, expected):
    """Texts and messages travel as they are; what a data set fills up with None is no field."""
    assert readable(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "got NoneType as the prompt"),
        ([], "got list as the prompt"),
        ([{"role": "user"}], "got role in message 0"),
        (["hello"], "got str in message 0"),
        ([*MESSAGES, {"role": "assistant", "content": "", "tool_calls": [1]}], "got content, role, tool_calls in mess"),
        (
            [{"role": "user", "content": [{"type": "image", "image": 1}]}],
            "got content that is not all text in message 0",
        ),
        ([{"role": "user", "content": []}], "got content that is not all text"),
        ([{"role": "user", "content": 5}], "got content that is not all text"),
    ],
)
def test_what_no_model_reads_is_refused_in_words(prompt, said):
    """The model would score an answer to another prompt."""
    with pytest.raises(ValueError, match=said):
        readable(prompt)
