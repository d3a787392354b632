import itertools
from collections import Counter

import pytest

from cache.replicas import counters_of, moved
from server.model_services import (
    BONUS,
    REWARDS,
    UTILITY,
    WORDS,
    columns_of,
    fake,
    sets_of,
    with_embedder,
    with_models,
    worth,
)
from server.running import nested, on_service

ROW = ("sun", "rain", "wind", "fog")
MANY = (*WORDS, *(f"word{n}" for n in range(9)))
ASKED = {"rewards": REWARDS, "utility": UTILITY}


class Heard:
    """The worth of a text, and a count of the texts that it was asked about."""

    def __init__(self):
        self.texts = Counter()

    def __call__(self, prompt, text):
        """The worth."""
        self.texts[str(prompt), text] += 1
        return worth(prompt, text)


def remembering(heard=worth, *, model=None, **settings):
    """Resources of a service with a model, which remembers whatever it says."""
    return with_models(fake(score=heard, **(model or {})), **{"cache_min_evaluation_s": 0, **settings})


def answers_of(bodies, resources=None, headers=None):
    """What one service answers to requests, one after the other."""

    async def ask(service):
        responses = [await service.post(body, **(headers or {})) for body in bodies]
        return [response.json() for response in responses]

    return on_service(ask, resources or remembering())


def numbers_of(document):
    """All of an answer but its name, times and costs."""
    return {name: value for name, value in document.items() if name not in {"request_id", "queue_s", "usage"}}


def costs(documents):
    """Evaluations, and utilities that were remembered."""
    return [(one["usage"]["evaluations"], one["usage"]["from_cache"]) for one in documents]


@pytest.mark.parametrize("form", [sets_of, columns_of])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("options", "n_texts", "n"),
    [
        (REWARDS, 6, 6),
        ({**REWARDS, "utility": {"type": "top_m", "m": 2}}, 6, 6),
        (UTILITY, 19, 20),
        ({**UTILITY, "credit": {"type": "leave_one_out"}}, 9, 10),
        ({**UTILITY, "credit": {"type": "prefix_gain"}}, 7, 8),
    ],
)
def test_the_second_time_costs_nothing(form, deterministic, options, n_texts, n):
    """An identical request asks the model nothing and has the same bits, those of a service without a memory.

    Two sets of one prompt have the empty text in common: the model scores it once, and it is a utility of both.
    """
    body = form(ROW, ("snow", "hail"), **options, deterministic=deterministic)
    heard = Heard()
    first, second, third = answers_of([body] * 3, remembering(heard))
    (alone,) = answers_of([body], remembering(cache_bytes=0))
    assert numbers_of(first) == numbers_of(second) == numbers_of(third) == numbers_of(alone)
    assert costs([first, second, third, alone]) == [(n_texts, 0), (0, n), (0, n), (n_texts, 0)]
    assert second["usage"]["tokens_computed"] == second["usage"]["tokens_naive"] == 0
    assert second["usage"]["engine_s"] == 0.0
    assert heard.texts.total() == n


def test_an_estimate_is_remembered():
    """What an estimator with an early end asks in several rounds is remembered round by round."""
    body = sets_of(MANY, **UTILITY, estimator={"budget": 4096, "target_standard_error": 0.2})
    heard = Heard()
    first, second = answers_of([body] * 2, remembering(heard))
    (alone,) = answers_of([body], remembering(cache_bytes=0))
    assert numbers_of(first) == numbers_of(second) == numbers_of(alone)
    assert costs([first, second]) == [(first["usage"]["evaluations"], 0), (0, first["usage"]["evaluations"])]
    assert max(heard.texts.values()) == 1


@pytest.mark.parametrize("asked", list(ASKED))
def test_candidates_in_another_order_are_remembered(asked):
    """A permutation of the candidates costs nothing, and permutes the credits."""
    orders = list(itertools.permutations(range(4)))[::7]
    bodies = [sets_of([ROW[place] for place in order], **ASKED[asked]) for order in orders]
    first, *others = answers_of(bodies)
    credits_ = first["sets"][0]["credits"]
    for order, other in zip(orders[1:], others, strict=True):
        assert other["usage"]["evaluations"] == 0
        assert other["sets"][0]["credits"] == [credits_[place] for place in order]


def test_seed_estimator_and_budget_share_what_they_can():
    """No coalition is scored twice for another plan, and a larger budget goes on where a smaller one stopped."""
    plans = [
        {"type": "stratified", "budget": 200, "seed": 1},
        {"type": "stratified", "budget": 200, "seed": 2},
        {"type": "stratified", "budget": 400, "seed": 1},
        {"type": "permutations", "budget": 300, "seed": 3},
    ]
    bodies = [sets_of(MANY, **UTILITY, estimator=plan) for plan in plans]
    heard = Heard()
    found = answers_of(bodies, remembering(heard))
    assert max(heard.texts.values()) == 1
    assert sum(heard.texts.values()) == sum(evaluations for evaluations, _ in costs(found))
    (first, nothing), (other, some), (larger, known), (permuted, ends) = costs(found)
    assert (nothing, other + some, larger + known) == (0, first, 2 * first)
    assert min(some, ends) >= 2
    assert known >= first
    assert 0 < permuted < 300
    for body, one in zip(bodies, found, strict=True):
        (alone,) = answers_of([body], remembering(cache_bytes=0))
        assert numbers_of(one) == numbers_of(alone)


def test_a_rule_shares_with_every_other():
    """Credits under another rule, or with v(∅) given, cost what no rule has asked for yet."""
    bodies = [
        sets_of(ROW, **UTILITY, credit={"type": "leave_one_out"}),
        sets_of(ROW, **UTILITY),
        sets_of(ROW, **UTILITY, credit={"type": "prefix_gain"}),
        sets_of(ROW, utility={**UTILITY["utility"], "empty": 0.5}),
    ]
    assert costs(answers_of(bodies)) == [(6, 0), (10, 6), (0, 5), (0, 15)]


@pytest.mark.parametrize("asked", list(ASKED))
def test_equal_sets_are_scored_once_where_bits_count(asked):
    """Where each set is a pass of its own, copies of one set are one pass, and have the same numbers."""
    heard, n = Heard(), 4 if asked == "rewards" else 16
    body = sets_of(ROW, ("snow",), ROW, ROW, **ASKED[asked], deterministic=True)
    (found,) = answers_of([body], remembering(heard))
    (alone,) = answers_of([body], remembering(cache_bytes=0))
    assert numbers_of(found) == numbers_of(alone)
    assert heard.texts.total() == n + (1 if asked == "rewards" else 2)


def test_one_new_candidate_costs_one_evaluation():
    """Rewards are remembered candidate by candidate, whatever set they stood in."""
    heard = Heard()
    bodies = [
        sets_of(("sun", "rain"), ("wind",), **REWARDS),
        sets_of(("rain", "snow", "wind"), **REWARDS),
        sets_of(("snow", "snow", "sun"), ("fog", "sun"), **REWARDS, utility={"type": "mean", "empty": 0.0}),
    ]
    assert costs(answers_of(bodies, remembering(heard))) == [(3, 0), (1, 2), (1, 2)]
    assert heard.texts == Counter({("weather?", text): 1 for text in ("sun", "rain", "wind", "snow", "fog")})


def test_a_coalition_is_not_a_candidate():
    """Utilities of coalitions and rewards of candidates are asked with other texts, and share nothing."""
    assert costs(answers_of([sets_of(ROW, **UTILITY), sets_of(ROW, **REWARDS)])) == [(16, 0), (4, 0)]


OTHERS = [
    {"prompt": "weather!"},
    {"prompt": [{"role": "user", "content": "weather?"}]},
    {"deterministic": True},
]


@pytest.mark.parametrize("asked", list(ASKED))
@pytest.mark.parametrize("change", OTHERS)
def test_another_question_is_asked(asked, change):
    """Another prompt, and whether last bits count, share nothing, in either order."""
    first, second = sets_of(ROW, **ASKED[asked]), sets_of(ROW, **ASKED[asked], **change)
    n = 4 if asked == "rewards" else 16
    for bodies in ((first, second, first, second), (second, first, second, first)):
        assert costs(answers_of(bodies)) == [(n, 0), (n, 0), (0, n), (0, n)]


def test_another_template_is_asked():
    """What stands before and behind each candidate is part of what is judged; an empty coalition as well."""
    template = {"type": "sorted", "before": "- ", "after": "\n"}
    bodies = [sets_of(ROW, **UTILITY), sets_of(ROW, utility={**UTILITY["utility"], "template": template})]
    assert [cost for cost, _ in costs(answers_of(bodies))] == [16, 16]


def test_another_model_is_asked():
    """Two models of one service share nothing."""
    engines = [fake("rm", Heard()), fake("other", Heard())]
    bodies = [sets_of(ROW, rewards={"type": "model", "model": name}) for name in ("rm", "other", "rm")]
    assert costs(answers_of(bodies, with_models(*engines, cache_min_evaluation_s=0))) == [(4, 0), (4, 0), (0, 4)]


@pytest.mark.parametrize("asked", list(ASKED))
def test_tenants_share_nothing(asked):
    """What one API key asked is asked again for another, and remembered for the same one."""
    body, heard = sets_of(ROW, **ASKED[asked]), Heard()

    async def ask(service):
        keys = ("first-key", "second-key", "first-key", "second-key")
        responses = [await service.post(body, Authorization=f"Bearer {key}") for key in keys]
        return [response.json() for response in responses]

    found = on_service(ask, remembering(heard, api_keys=("first-key", "second-key")))
    n = 4 if asked == "rewards" else 16
    assert costs(found) == [(n, 0), (n, 0), (0, n), (0, n)]
    assert set(heard.texts.values()) == {2}


def test_cheap_utilities_are_not_remembered():
    """What takes the model less time than the setting is asked each time."""
    body = sets_of(ROW, **UTILITY)
    assert costs(answers_of([body] * 2, remembering(cache_min_evaluation_s=1000.0))) == [(16, 0), (16, 0)]
    slow = with_models(fake(per_batch_s=0.05), cache_min_evaluation_s=0.002)
    assert costs(answers_of([body] * 2, slow)) == [(16, 0), (0, 16)]


def test_without_bytes_nothing_is_remembered():
    """With neither memory nor Redis there is no cache, and the model is asked each time."""
    resources = remembering(cache_bytes=0)
    found = answers_of([sets_of(ROW, **UTILITY), sets_of(ROW, **UTILITY)], resources)
    assert costs(found) == [(16, 0), (16, 0)]
    assert resources.cache is None


def test_a_model_may_be_registered_as_not_remembered():
    """With `cache = false` the model is asked each time, and counts nowhere."""

    async def ask(service):
        found = [(await service.post(sets_of(ROW, **UTILITY))).json() for _ in range(2)]
        return found, counters_of((await service.client.get("/metrics")).text)

    found, counters = on_service(ask, remembering(model={"cache": False}))
    assert costs(found) == [(16, 0), (16, 0)]
    assert not {name for name in counters if name.startswith(("games", "evaluations_saved"))}


LONG, CURSED = ("x" * 30, {"max_tokens": 36}, "context_exceeded"), ("curse", {}, "non_finite_utility")


@pytest.mark.parametrize(
    ("asked", "deterministic", "case", "expected"),
    [
        ("rewards", False, LONG, [(3, 0), (0, 3)]),
        ("rewards", False, CURSED, [(4, 0), (1, 3)]),
        ("rewards", True, LONG, [(3, 0), (1, 2)]),
        ("rewards", True, CURSED, [(4, 0), (2, 2)]),
        ("utility", False, LONG, [(5, 0), (0, 6)]),
        ("utility", False, CURSED, [(7, 0), (2, 6)]),
        ("utility", True, LONG, [(5, 0), (2, 4)]),
        ("utility", True, CURSED, [(7, 0), (4, 4)]),
    ],
)
def test_what_failed_is_asked_again(asked, deterministic, case, expected):
    """A text without a score fails its set each time; what is finite beside it is remembered, unless bits count."""
    bad, model, code = case
    body = sets_of(("sun", bad), ("rain", "wind"), **ASKED[asked], deterministic=deterministic)
    found = answers_of([body] * 2, remembering(model=model))
    for one in found:
        assert [row["status"] for row in one["sets"]] == ["error", "ok"]
        assert one["sets"][0]["error"]["code"] == code
    assert numbers_of(found[0]) == numbers_of(found[1])
    assert costs(found) == expected


def test_a_model_that_fails_is_remembered_as_nothing():
    """After an error of the engine the next request asks anew, and is answered."""
    left = [ValueError("broken")]

    def score(prompt, text):
        if left:
            raise left.pop()
        return worth(prompt, text)

    async def ask(service):
        return [await service.post(sets_of(("sun",), **REWARDS)) for _ in range(3)]

    found = on_service(ask, remembering(score))
    assert [one.status_code for one in found] == [502, 200, 200]
    assert costs([one.json() for one in found[1:]]) == [(1, 0), (0, 1)]


def test_a_dry_run_says_what_is_remembered():
    """The price is what would be asked now, beside what is remembered; it asks nothing, and moves no counter."""
    heard = Heard()

    async def ask(service):
        found = []
        for body in (sets_of(ROW, **REWARDS), sets_of(("sun", "rain", "snow"), **REWARDS), sets_of(ROW, **UTILITY)):
            before = counters_of((await service.client.get("/metrics")).text)
            price = (await service.post({**body, "dry_run": True})).json()
            assert moved(before, counters_of((await service.client.get("/metrics")).text)) == {}
            found.append((price, (await service.post(body)).json()))
        found.append(((await service.post({**body, "dry_run": True})).json(), (await service.post(body)).json()))
        return found

    found = on_service(ask, remembering(heard))
    prices, paid = zip(*found, strict=True)
    assert costs(prices) == costs(paid) == [(4, 0), (1, 2), (16, 0), (0, 16)]
    assert all("sets" not in price for price in prices)
    assert [one["usage"]["tokens_computed"] for one in prices] == [one["usage"]["tokens_computed"] for one in paid]
    assert set(heard.texts.values()) == {1}


def test_counters_say_where_games_were():
    """Each game counts once as missed or as found, with the evaluations that this saved."""
    bodies = [
        (sets_of(ROW, ROW[::-1], ("sun", "snow"), **REWARDS), {"games missed": 5}),
        (sets_of(ROW, **REWARDS), {"games memory": 4, "evaluations_saved memory rm": 4}),
        (sets_of(("sun", "hail"), **REWARDS), {"games memory": 1, "evaluations_saved memory rm": 1, "games missed": 1}),
        (sets_of(ROW, ("snow", "fog"), **UTILITY), {"games missed": 2}),
        (sets_of(ROW, ("snow", "fog"), **UTILITY), {"games memory": 2, "evaluations_saved memory rm": 20}),
        (sets_of(ROW, ROW, **UTILITY), {"games memory": 1, "evaluations_saved memory rm": 16}),
        (sets_of(("curse",), **REWARDS), {"games missed": 1}),
        (sets_of(("curse",), **REWARDS), {"games missed": 1}),
        (nested(), {}),
    ]

    async def ask(service):
        sizes, before = [], {}
        for body, expected in bodies:
            await service.post(body)
            text = (await service.client.get("/metrics")).text
            after = counters_of(text)
            assert moved(before, after) == expected
            before = after
            sizes.append([float(line.split()[1]) for line in text.splitlines() if line.startswith("creditd_cache_mem")])
        return sizes, service.resources.cache.memory

    sizes, memory = on_service(ask, remembering())
    # Of games that were remembered there are six candidates and two sets.
    assert sorted(sizes[-1]) == [8, memory.n_bytes]
    assert sorted(sizes[0]) < sorted(sizes[-1])


def test_vectors_are_not_remembered():
    """An embedding model is asked each time, and the reward model beside it is not."""
    body = sets_of(
        ("sun", "rain"),
        **REWARDS,
        features={"type": "embedding", "model": "emb"},
        utility={"type": "redundancy", "penalty": 0.5},
    )
    first, second = answers_of([body] * 2, with_embedder(cache_min_evaluation_s=0))
    assert "sets" in first, first
    assert numbers_of(first) == numbers_of(second)
    assert costs([first, second]) == [(4, 0), (2, 2)]


def test_what_is_remembered_is_right():
    """Credits of remembered utilities are those of the words, worked out by hand."""
    first, second = answers_of([sets_of(("sun", "rain"), **UTILITY), sets_of(("rain", "sun"), **UTILITY)])
    expected = [WORDS["sun"] + BONUS / 2, WORDS["rain"] + BONUS / 2]
    assert first["sets"][0]["credits"] == pytest.approx(expected, abs=1e-12)
    assert second["sets"][0]["credits"] == pytest.approx(expected[::-1], abs=1e-12)
