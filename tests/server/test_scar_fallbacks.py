"""Whatever happens to a completion, its token rewards sum to what it returns: over HTTP, in both formats."""

import math

import pytest

from server.model_services import fake, with_models
from server.scar_calls import FORMATS, TEXT, answered, item_of, request_of, scorer, value

FALLBACK = ["fallback_return"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("alpha", [1.0, 0.25, 0.0])
@pytest.mark.parametrize(
    ("item", "options"),
    [
        pytest.param(item_of(""), {}, id="empty"),
        pytest.param(item_of("sun <x>", completion_mask=[False] * 4), {}, id="all masked"),
        pytest.param(
            {
                "prompt": "weather?",
                "completion": "sun",
                "token_offsets": [[0, 3], [3, 3]],
                "completion_mask": [False, True],
            },
            {},
            id="trainable tokens without text",
        ),
        pytest.param(item_of("curse. charm"), {}, id="refused coalition"),
        pytest.param(item_of("curse. charm"), {"credit": {"type": "prefix"}}, id="refused prefix"),
        pytest.param(item_of("charm. curse"), {"credit": {"type": "leave_one_out"}}, id="refused absence"),
        pytest.param(
            item_of("charm curse sun", completion_mask=[True, False, True]),
            {"credit": {"type": "uniform"}},
            id="frozen ∅",
        ),
        pytest.param(item_of("sun, rain", "silence?"), {}, id="v(∅) refused"),
        pytest.param(item_of("42. 43"), {"credit": {"type": "attention"}}, id="no attention"),
    ],
)
def test_a_completion_that_cannot_be_decomposed_returns_the_same(item, options, alpha, form):
    """The law holds, with other rewards and KL terms, and the flag says that there are no unit values."""
    n_tokens = len(item["token_offsets"])
    item = {**item, "kl": [0.25 * place - 0.5 for place in range(n_tokens)], "other_reward": -1.5}
    (found,) = answered(request_of(item, alpha=alpha, advantage={"type": "pooled"}, **options), form)
    assert "fallback_return" in found["flags"]
    assert len(found["token_rewards"]) == len(found["token_advantages"]) == n_tokens


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("text", ["sun", "  "])
def test_one_unit_has_all_of_it(text, form):
    """A completion of one unit is decomposed: the unit gets v(P) − v(∅), also where it is blank."""
    item = {"prompt": "weather?", "completion": text, "token_offsets": [[0, 1], [1, len(text)]], "other_reward": 1.0}
    (found,) = answered(request_of(item), form)
    assert (found["units"], found["flags"]) == ([[0, 2]], [])
    assert found["unit_values"] == [value("weather?", text) - value("weather?", "")]


@pytest.mark.parametrize("form", FORMATS)
def test_a_return_in_one_piece_stands_on_the_last_trainable_token(form):
    """In place of unit values and of the terminal part: v(P) − α·v(∅), beside the KL terms of all tokens."""
    item = item_of("curse. sun charm <x>", completion_mask=[True] * 4 + [False] * 3, kl=[0.5] * 7, other_reward=0.25)
    (found,) = answered(request_of(item, alpha=0.5), form)
    grand, empty = value("weather?", item["completion"]), value("weather?", "")
    assert found["flags"] == FALLBACK
    assert (found["unit_values"], found["method"], found["exact"], found["gap"]) == (None, None, None, None)
    assert found["token_rewards"] == pytest.approx(
        [0.5, 0.5, 0.5, 0.5 + 0.25 + grand - 0.5 * empty, 0.0, 0.0, 0.0], abs=1e-12
    )
    assert (found["ledger"]["units"], found["ledger"]["terminal"]) == (0.0, 0.0)
    assert found["ledger"]["remainder"] == pytest.approx(grand - 0.5 * empty)


@pytest.mark.parametrize("form", FORMATS)
def test_without_a_trainable_token_the_return_is_reported(form):
    """No token has a reward, and the ledger says what they would have summed to."""
    item = item_of("sun rain", completion_mask=[False, False], kl=[7.0, 7.0], other_reward=0.5)
    (found,) = answered(request_of(item), form)
    assert found["token_rewards"] == [0.0, 0.0]
    assert found["ledger"]["total"] == value("weather?", "sun rain") - value("weather?", "") + 0.5
    assert (found["units"], found["flags"]) == ([], FALLBACK)


@pytest.mark.parametrize("form", FORMATS)
def test_a_refused_empty_completion_takes_alpha_from_its_prompt(form):
    """All completions of the prompt have α = 0, and those of other prompts keep theirs."""
    items = [item_of("sun, rain", "silence?"), item_of("fog", "silence?"), item_of("fog")]
    found = answered(request_of(*items), form)
    assert [one["ledger"]["alpha"] for one in found] == [0.0, 0.0, 1.0]
    assert [one["utility_empty"] for one in found] == [None, None, 0.125]
    assert [one["flags"] for one in found] == [FALLBACK, FALLBACK, []]
    assert [one["ledger"]["terminal"] for one in found] == [one["utility_grand"] for one in found[:2]] + [0.0]


def test_a_group_has_one_alpha():
    """A group of several prompts has α = 0 altogether where one of them has no v(∅)."""
    items = [item_of("sun", "silence?", group=1), item_of("fog", group=1), item_of("fog", "else?", group=2)]
    found = answered(request_of(*items, alpha=0.5))
    assert [one["ledger"]["alpha"] for one in found] == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("form", FORMATS)
def test_a_refused_completion_is_an_error_of_its_own(form):
    """Without v(P) there is no return: the item has the code of the failure, and others have answers."""
    engine = scorer(max_tokens=40)
    items = [item_of("doom"), item_of(TEXT + TEXT), item_of("sun, rain")]
    found = answered(request_of(*items), form, with_models(engine))
    assert [one.get("error", {}).get("code") for one in found] == ["non_finite_utility", "context_exceeded", None]
    assert [one["error"]["pointer"] for one in found[:2]] == ["/items/0/completion", "/items/1/completion"]
    assert not any(one["error"]["retryable"] for one in found[:2])


def test_a_coalition_that_does_not_fit_costs_the_decomposition_alone():
    """A mask token makes a coalition longer than the model reads: the completion keeps its return."""
    engine = scorer(max_tokens=len("weather?") + 12)
    absent = {"type": "mask_token", "text": "<a mask token>"}
    body = request_of(item_of("sun. fog."), absent=absent)
    (found,) = answered(body, resources=with_models(engine))
    assert (found["flags"], found["utility_empty"], found["ledger"]["alpha"]) == (FALLBACK, None, 0.0)
    assert found["utility_grand"] == value("weather?", "sun. fog.")


@pytest.mark.parametrize("form", FORMATS)
def test_attention_that_leaves_nothing_to_share_by_is_a_fallback(form):
    """No attention to any unit, or none that is a number."""
    for weight in (0.0, math.nan, math.inf):
        engine = fake(score=value, attention=lambda _, units, weight=weight: [weight] * len(units))
        (found,) = answered(request_of(item_of(TEXT), credit={"type": "attention"}), form, with_models(engine))
        assert found["flags"] == FALLBACK


def test_a_number_that_is_too_large_is_none():
    """A score beyond 1e90 is refused as NaN is."""

    def score(_, text):
        return 1e95 if text == "sun." else 0.5

    (found,) = answered(request_of(item_of("sun. fog.")), resources=with_models(fake(score=score)))
    assert found["flags"] == FALLBACK
    assert found["ledger"]["total"] == 0.0


@pytest.mark.parametrize("form", FORMATS)
def test_masked_tokens_get_exactly_nothing_whatever_happens(form):
    """Rewards and advantages of masked tokens are 0 in fallbacks, too."""
    mask = [True, False, True, False]
    items = [
        item_of("curse <charm", completion_mask=mask[:3], group=1),
        item_of("sun fog rain wind", completion_mask=mask, group=1),
        item_of("sun fog rain wind", "silence?", completion_mask=mask, group=1),
        item_of("sun fog", completion_mask=[False, False], group=1),
    ]
    found = answered(request_of(*items, advantage={"type": "pooled"}, alpha=0.5), form)
    assert [one["status"] for one in found] == ["ok"] * 4
    for item, one in zip(items, found, strict=True):
        masked = [place for place, trainable in enumerate(item["completion_mask"]) if not trainable]
        assert [one["token_rewards"][place] for place in masked] == [0.0] * len(masked)
        assert [one["token_advantages"][place] for place in masked] == [0.0] * len(masked)
