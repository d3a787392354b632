"""What the tests of the credit routes ask and read: sets, the forms of a request, answers, refusals."""

import pytest

from creditd.wire.errors import Problem
from creditd.wire.v1 import ShapleyResponse
from server.running import columnar, nested, post, ragged, rows_of

WORKED = 1e-9
"""Worked values are written with ten digits after the point."""

PAIR = {"n_tokens": 10, "candidates": [{"reward": 1.0, "span": [0, 3]}, {"reward": 0.5, "span": [4, 8]}]}
TABLE_PAIR = {"utilities": [0.0, 0.3, 0.5, 1.0], "candidates": [{}, {}]}
TOKENS = {"tokens": {}}
TABLE = {"utility": {"type": "table"}}
NAN = float("nan")
MARK = "12345.5"
"""Stands in a body where a literal goes that JSON cannot be written with."""


def approx(values):
    """Equal to the worked values' last digit."""
    return pytest.approx(values, rel=0, abs=WORKED)


def answer(body, path="/v1/credit/shapley", model=ShapleyResponse, **settings):
    """A 200 that fits its model, as plain JSON."""
    response = post(body, path, **settings)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    model.model_validate_json(response.content)
    return response.json()


def refusal(body, path="/v1/credit/shapley", **settings):
    """A 422 that is a problem document, as plain JSON."""
    response = post(body, path, **settings)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    Problem.model_validate_json(response.content)
    return response.json()


def in_all_forms(rewards, **options):
    """One request set by set, as flat values, and as rows."""
    rows = columnar(rewards, **options)
    rows["columns"]["rewards"] = rewards
    return nested(rewards, **options), columnar(rewards, **options), rows


def per_set(document):
    """Credits, advantages and set advantages of an answer in either form."""
    if document.get("sets"):
        sets = document["sets"]
        return (
            [one["credits"] for one in sets],
            [one["advantages"] for one in sets],
            [one["set_advantage"] for one in sets],
        )
    columns = document["columns"]
    return rows_of(columns["credits"]), rows_of(columns["advantages"]), columns["set_advantages"]


def of_reward(*rewards, **more):
    """A set of plain rewards with spans of one token."""
    candidates = [{"reward": r, "span": [k, k + 1]} for k, r in enumerate(rewards)]
    return {"n_tokens": 10, "candidates": candidates, **more}


def in_columns(sets, *, flat):
    """Nested sets as columns, with the columns that the sets have."""
    everyone = [candidate for one in sets for candidate in one["candidates"]]
    form = ragged if flat else list
    columns = {"rewards": form([[c.get("reward") for c in one["candidates"]] for one in sets])}
    if all("n_tokens" in one for one in sets):
        columns["n_tokens"] = [one["n_tokens"] for one in sets]
        columns["spans"] = {"starts": [c["span"][0] for c in everyone], "stops": [c["span"][1] for c in everyone]}
    if any("utilities" in one for one in sets):
        columns["utilities"] = form([one["utilities"] for one in sets])
    if any("set_reward" in one for one in sets):
        columns["set_rewards"] = [one.get("set_reward") for one in sets]
    if any("text" in candidate for candidate in everyone):
        columns["texts"] = [candidate.get("text") for candidate in everyone]
    return columns
