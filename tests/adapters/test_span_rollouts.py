"""Completions whose spans are credited: alignment and failure policies, without any trainer framework."""

import math
import re
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from creditd.adapters.credit_config import CreditConfig, anneal
from creditd.adapters.span_reward import SpanReward
from creditd.adapters.span_rollouts import SpanChoices, SpanCreditor, SpanRollout
from creditd.client import (
    Client,
    CreditdError,
    InvalidRequestError,
    PartialResultError,
    ResponseError,
    ScarResult,
)
from served_here import served_here
from server.model_services import fake, with_models

TEXTS = ["a, b, c", "ab, ba", "a", "", "b, b, b", "a, a, b", "abc", "c, c"]
PROMPTS = ["p"] * 4 + ["q"] * 4
REFUSED = "abc"


def worth(prompt, text):
    """Some letters are worth something, two of them together more, and one text has no worth."""
    if text == REFUSED:
        return math.nan
    return text.count("a") - 0.25 * text.count("c") + 2.0 * ("a" in text and "b" in text) + len(str(prompt)) / 8


def score(prompts, texts):
    """The same for many."""
    return [worth(*pair) for pair in zip(prompts, texts, strict=True)]


def rollouts(texts=TEXTS, prompts=PROMPTS, masked=(), others=None):
    """One rollout per text whose tokens are its characters, with one more that writes nothing, as an end does."""
    return [
        SpanRollout(
            prompt=prompt,
            text=text,
            offsets=(*((place, place + 1) for place in range(len(text))), (len(text), len(text))),
            written=(*(place not in masked for place in range(len(text))), True) if masked else None,
            other_reward=0.0 if others is None else others[row],
        )
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


SOUND = [text if text != REFUSED else "cab" for text in TEXTS]


def refusing(_):
    """A service that is not there."""
    raise httpx.ConnectError("refused")


def creditor(policy="raise", handler=refusing, choices=None, **options):
    """A creditor whose service does what the handler does, and which does not wait long."""
    client = Client("http://credit", transport=httpx.MockTransport(handler), deadline_s=0.01)
    given = {"score": score} | options
    return SpanCreditor(CreditConfig(on_failure=policy), choices or SpanChoices(), client=client, **given)


def here(choices=None, policy="raise", function=score, **config):
    """A creditor that computes in this process."""
    return SpanCreditor(
        CreditConfig(url="local:", on_failure=policy, **config), choices or SpanChoices(), score=function
    )


@contextmanager
def served(**options):
    """A client of a service with a model that says the same."""
    with served_here(with_models(fake(score=worth, **options))) as transport:
        yield Client("http://credit", transport=transport)


def same(one, other):
    """Equal bits of every rollout."""
    for given, wanted in zip(one, other, strict=True):
        np.testing.assert_array_equal(given, wanted)


@pytest.mark.parametrize(
    "choices",
    [
        SpanChoices(),
        SpanChoices(segmentation="token", absent="blank", credit="prefix", alpha=0.5),
        SpanChoices(credit="uniform", advantage={"type": "pooled", "ddof": 0, "epsilon": 0.0}),
        SpanChoices(credit="shapley", estimator={"type": "permutations", "budget": 16}, segmentation="token"),
    ],
)
def test_a_model_a_function_and_this_process_say_the_same(choices):
    """Equal bits by every way, and v(P) as the reward of each rollout."""
    batch = rollouts(SOUND, others=[0.5, 0.0, -1.0, 0.25] * 2)
    expected = here(choices).answer(batch, 4, 0)
    with served() as client:
        config = CreditConfig()
        by_model = SpanCreditor(config, choices, client=client, model="rm").answer(batch, 4, 0)
        by_function = SpanCreditor(config, choices, client=client, score=score).answer(batch, 4, 0)
    for answered in (by_model, by_function):
        same(answered.token_advantages, expected.token_advantages)
        assert answered.utilities == expected.utilities == score(PROMPTS, SOUND)
        assert answered.request_id is not None
    assert expected.request_id is None
    # Each of them scores a text once, however many completions it is a part of.
    counts = {answered.metrics["credit/evaluations"] for answered in (by_model, by_function, expected)}
    assert len(counts) == 1
    assert counts.pop() > 0
    assert expected.n_tokens == [len(text) + 1 for text in SOUND]


def test_what_the_policy_did_not_write_gets_exactly_nothing():
    """Masked tokens have 0, the others a group whose completions have the mean 0."""
    batch = rollouts(SOUND, masked=(1,))
    found = here(SpanChoices(advantage={"type": "pooled", "epsilon": 0.0})).answer(batch, 4, 0).token_advantages
    means = []
    for values, one in zip(found, batch, strict=True):
        own = np.array(one.written)
        assert not values[~own].any()
        means.append(values[own].mean())
    assert sum(means[:4]) == pytest.approx(0.0, abs=1e-9)
    assert sum(means[4:]) == pytest.approx(0.0, abs=1e-9)
    assert any(len(set(values.tolist())) > 2 for values in found)


def test_other_rewards_are_in_full_on_every_token():
    """With α = 0 every token has its completion's own advantage, that of v(P) + other_reward."""
    others = [0.5, -2.0, 1.0, 0.0]
    texts = ["a, b", "aaaa", "b, c", "c, a"]
    batch = rollouts(texts, ["p"] * 4, others=others)
    found = here(SpanChoices(alpha=0.0)).answer(batch, 4, 0)
    rewards = np.array(score(["p"] * 4, texts)) + others
    tokens = np.repeat(rewards, 5)
    wanted = (rewards - rewards.mean()) / (tokens.std(ddof=1) + 1e-4)
    for values, value in zip(found.token_advantages, wanted, strict=True):
        np.testing.assert_allclose(values, np.full(5, value), rtol=1e-12)


def test_a_unit_has_what_it_is_worth():
    """One completion with a good and a bad part: their tokens are trained apart."""
    batch = rollouts(["a, c", "b, b"], ["p", "p"])
    first, second = here().answer(batch, 2, 0).token_advantages
    assert first[0] == first[1] > first[2] == first[4]
    assert len(set(second.tolist())) == 1


@pytest.mark.parametrize("policy", ["raise", "group_reward", "mask", "local"])
def test_a_lost_service_is_the_failure_policys(policy):
    """The function still says the rewards; only `local` computes credit, with the bits of a service that works."""
    ask = creditor(policy)
    if policy == "raise":
        with pytest.raises(CreditdError):
            ask.answer(rollouts(SOUND), 4, 0)
        return
    answered = ask.answer(rollouts(SOUND), 4, 0)
    credited = ask.settle(answered, [0.5] * 8)
    assert answered.utilities == score(PROMPTS, SOUND)
    assert answered.request_id is None
    counts = [answered.metrics[f"credit/{name}"] for name in ("errors", "local", "fallbacks")]
    assert counts == [1.0, float(policy == "local"), float(policy != "local")]
    if policy == "local":
        same(credited.token_advantages, here().answer(rollouts(SOUND), 4, 0).token_advantages)
    else:
        value = 0.5 if policy == "group_reward" else 0.0
        assert all((row == value).all() for row in credited.token_advantages)
        assert [len(row) for row in credited.token_advantages] == answered.n_tokens


@pytest.mark.parametrize("policy", ["group_reward", "mask"])
def test_without_its_service_a_model_says_nothing(policy):
    """Nobody knows v(P) then."""
    answered = creditor(policy, score=None, model="rm").answer(rollouts(SOUND), 4, 0)
    assert answered.utilities == [None] * 8
    assert answered.token_advantages == [None] * 8
    assert answered.metrics["credit/fallbacks"] == 1.0
    settled = creditor(policy, score=None, model="rm").settle(answered, [0.5] * 8)
    assert not any(row.any() for row in settled.token_advantages)


@pytest.mark.parametrize("policy", ["raise", "group_reward", "mask", "local"])
def test_a_completion_without_a_reward_costs_its_group_only(policy):
    """v(P) that is refused fails the group under the policy; the other group keeps its credit."""
    if policy in {"raise", "local"}:
        with pytest.raises(PartialResultError):
            here(policy=policy).answer(rollouts(), 4, 0)
        return
    answered = here(policy=policy).answer(rollouts(), 4, 0)
    assert [row is None for row in answered.token_advantages] == [False] * 4 + [True] * 4
    assert answered.metrics["credit/fallbacks"] == 0.5
    assert [value is None for value in answered.utilities] == [text == REFUSED for text in TEXTS]
    same(answered.token_advantages[:4], here().answer(rollouts(SOUND), 4, 0).token_advantages[:4])


def test_a_coalition_without_a_reward_costs_no_answer():
    """Its completion has its return on one advantage, which the log counts."""

    def picky(prompts, texts):
        return [None if text == "a, b," else worth(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    metrics = here(function=picky).answer(rollouts(SOUND), 4, 0).metrics
    assert metrics["credit/fallback_returns"] == 2 / 8  # that one, and the one without units
    assert metrics["credit/errors"] == metrics["credit/fallbacks"] == 0.0


def test_metrics_say_what_was_done():
    """Every number is finite; those of a sample are there when there was one."""
    metrics = here(SpanChoices(segmentation={"type": "token", "max_units": 2})).answer(rollouts(SOUND), 4, 0).metrics
    assert metrics["credit/units"] == sum(min(2, len(text)) for text in SOUND) / 8
    assert metrics["credit/units_merged"] == sum(len(text) > 2 for text in SOUND) / 8
    assert metrics["credit/gap_max"] < 1e-12
    assert metrics["credit/within_completion_std"] > 0
    assert metrics["credit/alpha"] == 1.0
    assert "credit/standard_error" not in metrics
    sampled = SpanChoices(segmentation="token", credit="shapley", estimator={"type": "permutations", "budget": 100})
    metrics |= here(sampled).answer(rollouts(["a, b, c, a, b, c, a", "b"], ["p", "p"]), 2, 0).metrics
    assert metrics["credit/standard_error"] > 0
    assert all(math.isfinite(value) for value in metrics.values())


def test_rewards_alone_cost_what_scoring_costs():
    """In an evaluation a function is asked once for each completion, and a model for v(∅) of each prompt beside."""
    calls = []
    ask = creditor(score=lambda prompts, texts: calls.append(len(texts)) or score(prompts, texts))
    answered = ask.answer(rollouts(SOUND), 4, 0, with_credit=False)
    assert answered.utilities == score(PROMPTS, SOUND)
    assert calls == [8]
    assert answered.token_advantages == [None] * 8
    with served() as client:
        by_model = SpanCreditor(CreditConfig(), SpanChoices(), client=client, model="rm")
        answered = by_model.answer(rollouts(SOUND), 4, 0, with_credit=False)
    assert answered.utilities == score(PROMPTS, SOUND)
    assert answered.metrics["credit/evaluations"] == 8 + 2 - 1  # one of the completions is empty


def test_schedules_are_functions_of_the_step():
    """α and the credit follow the step, and the log has α."""
    choices = SpanChoices(alpha=lambda step: min(1.0, step / 10), credit=lambda step: "prefix" if step else "uniform")
    ask = here(choices)
    for step in (0, 4, 40, 4):
        fixed = SpanChoices(alpha=min(1.0, step / 10), credit="prefix" if step else "uniform")
        answered, expected = ask.answer(rollouts(SOUND), 4, step), here(fixed).answer(rollouts(SOUND), 4, 0)
        same(answered.token_advantages, expected.token_advantages)
        assert answered.metrics["credit/alpha"] == min(1.0, step / 10)
    wrong = SpanChoices(alpha=lambda step: step, credit=lambda step: None if step == 1 else "owen")
    with pytest.raises(ValueError, match=r"the schedule returned, at step 1, None"):
        here(wrong).answer(rollouts(SOUND), 4, 1)
    with pytest.raises(
        ValueError, match=r"the schedule of alpha returned, at step 2, 2; expected a number from 0 to 1"
    ):
        here(wrong).answer(rollouts(SOUND), 4, 2)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"segmentation": "given"}, "segmentation 'given'"),
        ({"segmentation": "chapter"}, "the choices of the span reward are refused: 422 invalid_request: /segmentation"),
        ({"absent": "drop"}, "invalid_request: /absent"),
        ({"absent": {"type": "mask_token", "id": 3}}, "refused: /absent/text"),
        ({"credit": "shaply"}, "invalid_request: /credit"),
        ({"credit": anneal("shapley", "owen", steps=3)}, "invalid_request: /credit"),
        ({"credit": "attention"}, "invalid_request: /credit"),
        ({"credit": 3}, "credit is 3"),
        ({"alpha": 1.5}, "got alpha 1.5; expected a number from 0 to 1"),
        ({"alpha": True}, "got alpha True"),
        ({"alpha": lambda _: "1"}, "the schedule of alpha returned, at step 0, '1'"),
        ({"alpha": math.nan}, "got alpha nan"),
        ({"batch_size": 0}, "got batch_size 0; expected a whole number of at least 1"),
        ({"batch_size": 2.0}, "got batch_size 2.0"),
        ({"batch_size": True}, "got batch_size True"),
        ({"estimator": {"budget": 0}}, "invalid_request: /estimator/budget"),
        ({"advantage": "none"}, "got advantage 'none'; expected 'pooled'"),
        ({"advantage": {"type": "pooled", "ddof": 3}}, "invalid_request: /advantage/ddof"),
    ],
)
def test_choices_that_make_no_sense_are_refused_before_a_run(wrong, said):
    """A misspelt value is an error at the start, and not a lost service for a whole run."""
    with pytest.raises(ValueError, match=re.escape(said)):
        here(SpanChoices(**wrong), policy="mask")


def test_what_only_a_model_does_is_left_to_it():
    """Attention and a token by its number are no errors where a model is asked."""
    choices = SpanChoices(credit="attention", absent={"type": "mask_token", "id": 3})
    creditor(choices=choices, score=None, model="rm")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"credit": "leave_one_out"}, "got CreditConfig(credit=…) with a SpanReward"),
        ({"utility": "sum"}, "CreditConfig(utility=…)"),
        ({"candidates": 3}, "CreditConfig(candidates=…)"),
        ({"malformed": {"duplicates": "collapse"}}, "CreditConfig(malformed=…)"),
    ],
)
def test_what_a_configuration_says_of_candidates_is_refused(config, said):
    """It would be passed over otherwise."""
    with pytest.raises(ValueError, match=re.escape(said)):
        here(**config)


def test_a_model_needs_a_service():
    """Local mode has none, and without the service there is none either."""
    for config, said in (
        (CreditConfig(url="local:"), "got the model 'rm' as span reward with url='local:'"),
        (CreditConfig(url="http://credit", on_failure="local"), "on_failure='local': without the service"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            SpanCreditor(config, SpanChoices(), model="rm")


def test_a_split_group_is_an_error():
    """Rows that do not make whole groups are refused by the expectation that travels with them."""
    with pytest.raises((PartialResultError, InvalidRequestError)):
        here().answer(rollouts(SOUND[:6], PROMPTS[:6]), 4, 0)


def test_the_function_gets_the_prompts_of_the_trainer():
    """Whatever they are, in calls of at most `batch_size` texts; what it raises is raised."""
    marks = [object(), object()]
    sizes = []

    def watched(prompts, texts):
        assert set(map(id, prompts)) <= set(map(id, marks))
        sizes.append(len(texts))
        return [float(marks.index(prompt)) + len(text) for prompt, text in zip(prompts, texts, strict=True)]

    prompts = [marks[0]] * 4 + [marks[1]] * 4
    answered = here(SpanChoices(batch_size=5), function=watched).answer(rollouts(SOUND, prompts), 4, 0)
    assert answered.utilities == [row // 4 + float(len(text)) for row, text in enumerate(SOUND)]
    assert max(sizes) == 5

    def failing(*_):
        raise ZeroDivisionError

    for policy in ("raise", "group_reward", "local"):
        with pytest.raises(ZeroDivisionError):
            here(policy=policy, function=failing).answer(rollouts(SOUND), 4, 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda item: item.pop("token_advantages"), "got no token advantages"),
        (lambda item: item.update(token_advantages=[None] * len(item["token_rewards"])), "nan as the advantage"),
        (lambda item: item.update(token_advantages=[1e300] * len(item["token_rewards"])), r"1e\+300 as the advantage"),
    ],
)
def test_an_answer_without_usable_advantages_is_none(change, said):
    """No advantage is made up."""
    with served() as client:

        def damaging(request):
            answer = client._http.request(request.method, request.url, headers=request.headers, content=request.content)
            document = answer.json()
            for item in document["items"]:
                change(item)
            return httpx.Response(200, json=document)

        damaged = Client("http://credit", transport=httpx.MockTransport(damaging), wire_format="json")
        with pytest.raises(ResponseError, match=said):
            SpanCreditor(CreditConfig(), SpanChoices(), client=damaged, model="rm").answer(rollouts(SOUND), 4, 0)


def test_a_span_reward_is_a_function_or_a_model():
    """Anything else is refused when it is written down."""

    async def later(prompts, texts):
        del prompts, texts

    for wrong in (None, "", 3):
        with pytest.raises(TypeError, match="as the span reward; expected a function"):
            SpanReward(wrong)
    with pytest.raises(TypeError, match="got an async function"):
        SpanReward(later)
    assert (SpanReward("rm").__name__, SpanReward(score).__name__, SpanReward("rm", name="x").__name__) == (
        "rm",
        "score",
        "x",
    )
    with pytest.raises(RuntimeError, match="a SpanReward works in a CreditGRPOTrainer"):
        SpanReward(score)(["p"], ["c"], [[1]])
    with pytest.raises(RuntimeError, match="a SpanReward works in a CreditGRPOTrainer"):
        _ = SpanReward(score).creditor
    assert ScarResult.__name__ == "ScarResult"
