"""`/v1/credit/scar` with a real model: the utilities are its own scores of the texts of coalitions."""

import itertools

import httpx
import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from creditd.credit.evaluated_games import EvaluatedGame  # noqa: E402
from creditd.credit.evaluation_needs import EstimatorOptions  # noqa: E402
from engines.saved import saved, tokenizer  # noqa: E402
from server.scar_calls import SCAR, assert_lawful, request_of  # noqa: E402
from server.test_served_models import AGREEMENT, MESSAGES, PATIENCE_S, one_by_one, served  # noqa: E402

TEXT = "the quick brown fox, jumps over. the lazy dog; 1 2 3"
SPANS = ["the quick brown fox,", " jumps over.", " the lazy dog;", " 1 2 3"]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with a reward model that remembers, and the model itself."""
    folder = tmp_path_factory.mktemp("models")
    model = saved(folder / "rm")
    with served(folder, '[[models]]\nid = "rm"\npath = "rm"\nrevision = "r1"\nmax_tokens = 120\n') as url:
        yield url, model


def post(url, body):
    """The answer to one request."""
    response = httpx.post(f"{url}{SCAR}", json=body, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    return response.json()


def item(prompt, text=TEXT):
    """A completion with the offsets of the model's own tokenizer, as any policy has one."""
    found = tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    return {"prompt": prompt, "completion": text, "token_offsets": [list(pair) for pair in found["offset_mapping"]]}


def shapley_of(model, prompt, fillers):
    """Exact values from the model's own scores of whole texts, one by one."""
    rows = np.array(list(itertools.product([False, True], repeat=len(SPANS))))
    texts = []
    for row in rows.tolist():
        runs = itertools.groupby(zip(row, SPANS, strict=True), key=lambda pair: pair[0])
        texts.append("".join("".join(text for _, text in run) if present else fillers for present, run in runs))
    game = EvaluatedGame(len(SPANS), EstimatorOptions(type="exact"))
    game.tell(rows, np.array(one_by_one(model, prompt, texts)))
    return game.credits()


@pytest.mark.parametrize("prompt", ["why? ", MESSAGES])
@pytest.mark.parametrize(
    ("absent", "filler"),
    [({"type": "delete"}, ""), ({"type": "blank"}, " "), ({"type": "mask_token", "text": "..."}, "...")],
)
def test_utilities_are_the_scores_of_texts(service, prompt, absent, filler):
    """Unit values, v(∅) and v(P) as from the model's scores one by one; the law holds for the model's own numbers."""
    url, model = service
    body = request_of(item(prompt), absent=absent, alpha=0.5)
    (found,) = post(url, body)["items"]
    expected = shapley_of(model, prompt, filler)
    assert [TEXT[start:stop] for start, stop in found["unit_characters"]] == SPANS
    assert found["unit_values"] == pytest.approx(expected.credits.tolist(), abs=AGREEMENT)
    ends = (found["utility_empty"], found["utility_grand"])
    assert ends == pytest.approx((expected.empty, expected.grand), abs=AGREEMENT)
    assert_lawful(body["items"][0], found, 0.5)


def test_a_second_request_evaluates_nothing(service):
    """What the model said is remembered, in whatever order it is asked for."""
    url, _ = service
    items = [item("remembered? "), item("remembered? ", "a question. an answer, the fox")]
    first = post(url, request_of(*items))
    again = post(url, request_of(*reversed(items)))
    assert first["usage"]["evaluations"] == 16 + 8 - 1
    assert first["usage"]["tokens_computed"] < first["usage"]["tokens_naive"]
    assert (again["usage"]["evaluations"], again["usage"]["tokens_computed"]) == (0, 0)
    assert again["items"] == first["items"][::-1]


def test_a_dry_run_says_exactly_what_it_costs(service):
    """Evaluations and tokens, those of shared prefixes once."""
    url, _ = service
    body = request_of(item("a price? "), item("a price? ", "fox, dog, fox"))
    price = post(url, {**body, "dry_run": True})["usage"]
    cost = post(url, body)["usage"]
    names = ("evaluations", "tokens_computed", "tokens_naive", "tokens_spliced", "from_cache")
    assert [price[name] for name in names] == [cost[name] for name in names]
    assert cost["evaluations"] > 0


def test_a_completion_beyond_the_context_fails_alone(service):
    """The code is that of the model's limit."""
    url, _ = service
    found = post(url, request_of(item("why? ", "fox " * 200), item("why? ")))["items"]
    assert found[0]["error"]["code"] == "context_exceeded"
    assert found[1]["status"] == "ok"


def test_a_completion_alone_has_the_bits_that_it_has_among_others(tmp_path):
    """`deterministic` makes the numbers a function of the completion, where nothing is remembered."""
    saved(tmp_path / "rm")
    with served(tmp_path, 'cache_bytes = 0\n[[models]]\nid = "rm"\npath = "rm"\n') as url:
        _assert_alone_as_among_others(url)


def _assert_alone_as_among_others(url):
    items = [item("bits? "), item("bits? ", "the dog, the fox. a question"), item("other bits? ")]
    together = post(url, request_of(*items, deterministic=True))["items"]
    for one, expected in zip(items, together, strict=True):
        (alone,) = post(url, request_of(one, deterministic=True))["items"]
        assert alone == expected


def test_attention_shares_what_the_completion_adds(service):
    """Values in proportion to what the last layer attends to of each unit, which sum to v(P) − v(∅)."""
    url, _ = service
    body = request_of(item("why? "), credit={"type": "attention"})
    (found,) = post(url, body)["items"]
    total = found["utility_grand"] - found["utility_empty"]
    shares = np.array(found["unit_values"]) / total
    assert found["method"] == "attention"
    assert (shares > 0).all()
    assert shares.sum() == pytest.approx(1.0)
    assert_lawful(body["items"][0], found, 1.0)


def test_a_token_of_the_model_stands_for_absent_units(service):
    """Its number is as good as its text."""
    url, _ = service
    pad = tokenizer().pad_token
    number = tokenizer().convert_tokens_to_ids(pad)
    by_number, by_text = (
        post(url, request_of(item("why? "), absent={"type": "mask_token", **token}))["items"]
        for token in ({"id": number}, {"text": pad})
    )
    assert by_number == by_text
    problem = httpx.post(
        f"{url}{SCAR}",
        json=request_of(item("why? "), absent={"type": "mask_token", "id": 10**6}),
        timeout=PATIENCE_S,
    ).json()
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("invalid_request", "/absent/id")
