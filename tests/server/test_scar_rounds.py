"""A request whose coalitions are more than one round holds."""

import pytest

from creditd.scoring import span_utilities
from server.model_services import with_models
from server.scar_calls import ask, item_of, request_of, scorer

TEXTS = ["sun and rain, wind. snow; fog!", "sun, wind.", "rain; snow, fog? sun."]


@pytest.fixture
def small_rounds(monkeypatch):
    """Rounds of one completion each."""
    monkeypatch.setattr(span_utilities, "ROUND_CHARACTERS", 1)


def body(**options):
    """One completion of each text."""
    return request_of(*(item_of(text) for text in TEXTS), **options)


def test_rounds_change_no_number(monkeypatch):
    whole = ask(body(), resources=with_models(scorer()))
    monkeypatch.setattr(span_utilities, "ROUND_CHARACTERS", 1)
    engine = scorer()
    in_rounds = ask(body(), resources=with_models(engine))
    assert in_rounds["items"] == whole["items"]
    # A text that two completions have in common is one evaluation in one round.
    assert whole["usage"]["evaluations"] < in_rounds["usage"]["evaluations"] < whole["usage"]["evaluations"] + 4
    assert len(engine.batches) >= len(TEXTS)


@pytest.mark.usefixtures("small_rounds")
def test_a_dry_run_prices_every_round():
    price = ask(body(dry_run=True), resources=with_models(scorer()))["usage"]
    cost = ask(body(), resources=with_models(scorer()))["usage"]
    assert price["evaluations"] == cost["evaluations"] > 2**4
    assert price["tokens_computed"] == cost["tokens_computed"]


def test_hundreds_of_completions_of_hundreds_of_tokens_are_within_the_limits():
    text = " ".join(f"word{place} and another one, so to say." for place in range(48))
    price = ask(request_of(*[item_of(text, "why? " * 80)] * 256, dry_run=True), resources=with_models(scorer()))
    assert price["usage"]["evaluations"] == 428
