"""What answers of `/v1/credit/scar` cost, what of it is remembered, and what is said of it."""

import re

import numpy as np
import pytest

from server.model_services import WORDS, fake, with_models
from server.running import SCAR, on_service
from server.scar_calls import (
    ABSENT,
    FORMATS,
    MANY,
    TEXT,
    ask,
    document_of,
    item_of,
    request_of,
    say,
    scorer,
    tokens_of,
)


def test_the_empty_completion_is_asked_once_per_prompt():
    """Completions of one prompt share v(∅) and the texts that they have in common."""
    engine = scorer()
    items = [item_of("sun, rain."), item_of("wind, fog."), item_of("sun, rain.", "other?")]
    found = ask(request_of(*items), resources=with_models(engine))
    assert found["usage"]["evaluations"] == (1 + 3 + 3) + (1 + 3)
    assert (found["model"], found["weight_version"]) == ("rm", None)


@pytest.mark.parametrize("form", FORMATS)
def test_a_second_request_evaluates_nothing(form):
    """What is remembered is not asked for, also where another value or seed needs it; the answer is the same."""
    engine = scorer()

    async def both(service):
        first = document_of(await say(service, request_of(item_of(TEXT), item_of(MANY)), form))
        again = document_of(await say(service, request_of(item_of(TEXT), item_of(MANY)), form))
        other = document_of(await say(service, request_of(item_of(TEXT), credit={"type": "prefix"}), form))
        return first, again, other

    first, again, other = on_service(both, with_models(engine, cache_min_evaluation_s=0))
    assert again["items"] == first["items"]
    assert first["usage"]["evaluations"] > 0
    assert (again["usage"]["evaluations"], other["usage"]["evaluations"]) == (0, 0)
    assert again["usage"]["from_cache"] > 0
    assert len(engine.batches) == 1


def test_rules_for_absent_units_are_remembered_apart():
    """Each rule has numbers of its own, whatever was asked before."""
    rules, remember = [absent for absent, _, _ in ABSENT.values()], {"cache_min_evaluation_s": 0}
    body = request_of(item_of("sun, rain. wind", "silent?"))

    def score(_, text):
        return float(len(text))

    async def one_after_another(service):
        return [document_of(await say(service, {**body, "absent": rule}))["items"] for rule in rules]

    together = on_service(one_after_another, with_models(fake(score=score), **remember))
    apart = [
        ask({**body, "absent": rule}, resources=with_models(fake(score=score), **remember))["items"] for rule in rules
    ]
    assert together == apart
    assert together[1] == together[3]  # of a token whose text is as long as a blank
    assert len({str(items) for items in together}) == 3


DRY = {
    "auto": {},
    "sampled": {"estimator": {"type": "permutations", "budget": 60}},
    "prefix": {"credit": {"type": "prefix"}, "absent": {"type": "blank"}},
    "attention": {"credit": {"type": "attention"}},
    "merged": {"segmentation": {"type": "token", "max_units": 3}},
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", DRY)
def test_a_dry_run_says_exactly_what_it_costs(name, form):
    """Evaluations and tokens of a request, v(∅) and attention included; nothing is run, and no item is answered."""
    items = [
        item_of(TEXT),
        item_of(MANY),
        item_of("", "empty?"),
        item_of("sun <x>", completion_mask=[True] + [False] * 3),
    ]
    body = request_of(*items, **DRY[name])
    engine = scorer()
    price = ask({**body, "dry_run": True}, form, with_models(engine))
    assert engine.batches == []
    assert price.get("items") is None
    assert price["model"] == "rm"
    cost = ask(body, form)["usage"]
    counts = ("evaluations", "tokens_computed", "tokens_naive", "from_cache")
    assert [price["usage"][count] for count in counts] == [cost[count] for count in counts]
    assert cost["evaluations"] > 0


def test_both_formats_say_the_same():
    """To the last bit, in either format and whatever arrays of the request are buffers."""
    items = [
        item_of(TEXT, id=1, group="p", kl=[0.125 * token for token in range(10)], other_reward=-0.5),
        item_of(MANY, id="b", group="p"),
        item_of("curse. charm", group="q"),
        item_of("doom", group="q"),
        item_of("sun <x>", group="r", completion_mask=[True, False, False, False]),
    ]
    body = request_of(
        *items, advantage={"type": "pooled"}, estimator={"type": "permutations", "budget": 300}, alpha=0.3
    )
    assert ask(body, "json")["items"] == ask(body, "binary")["items"]


def test_hundreds_of_completions_are_one_request():
    """256 completions of 512 tokens, in both formats, each with every reward."""
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice([*WORDS, "and", "or,", "is."], 512)) for _ in range(256)]
    items = [item_of(text, f"p{row // 8}", kl=[0.0] * len(tokens_of(text))) for row, text in enumerate(texts)]
    body = request_of(*items, segmentation={"type": "sentence", "max_units": 2}, advantage={"type": "pooled"})
    found = ask(body, "binary")["items"]
    assert [len(one["token_rewards"]) for one in found] == [len(item["token_offsets"]) for item in items]
    assert len(found) == 256
    assert all("group_incomplete" not in one["flags"] for one in found)


def test_nothing_of_a_text_is_logged(log):
    """The log has route, items and flags, and no word of prompt or completion, nor of a pattern."""

    async def both(service):
        await say(service, request_of(item_of("curse, charm zyxwvu", "tsrqpo?")))
        await say(service, request_of(item_of("zyxwvu"), segmentation={"type": "regex", "pattern": "zyxwvu("}))
        return (await service.client.get("/metrics")).text

    metrics = on_service(both, with_models(scorer()))
    assert (log.requests[0]["route"], log.requests[0]["items"]) == (SCAR, 1)
    assert log.requests[0]["flags"] == {"fallback_return": 1}
    assert not re.search("zyxwvu|tsrqpo", "".join(log.texts))
    assert f'creditd_items_total{{route="{SCAR}",status="ok"}} 1.0' in metrics
    assert 'creditd_flags_total{flag="fallback_return"} 1.0' in metrics
