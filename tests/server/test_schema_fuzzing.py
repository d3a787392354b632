from collections import Counter

import pytest

pytestmark = pytest.mark.slow

LEAST_SHARE = 0.3
"""Of the requests that fit the schema of a route: how many are answered at least."""
PATIENCE_S = 60
"""For one answer: some that are drawn have plans of thousands of players, and a machine may be busy."""
GETS = ("/livez", "/readyz", "/metrics", "/v1/info", "/v1/utilities")
POSTS = (
    "/v1/credit/shapley",
    "/v1/credit/shapley/solve",
    "/v1/credit/group",
    "/v1/credit/scar",
    "/v1/credit/scar/solve",
    "/v1/credit/oar",
    "/v1/credit/compose",
)
REWARDS = ("/get_reward", "/classify")
"""Small schemas, of which few requests are derived."""


@pytest.fixture(scope="module")
def cases():
    """The module that makes requests, imported here because it is slow to import."""
    return pytest.importorskip("server.schema_cases", reason="schemathesis needs Python 3.11")


@pytest.fixture(scope="module")
def schema(cases):
    """The published document and the application behind it."""
    return cases.open_schema()


@pytest.mark.parametrize("path", [*GETS, *POSTS, *REWARDS])
def test_a_route_is_what_its_schema_says(cases, schema, path):
    """Whatever is drawn or derived from the schema of a route: no 5xx, and status, type, headers, body as published.

    What does not fit the schema is refused. What fits is answered or is 422: that lengths agree, budgets suffice and
    names match is nothing that JSON Schema can say, so `positive_data_acceptance` is replaced by the next test.
    """
    operation = cases.operation_of(schema, path)
    seen = Counter()

    def ask(case):
        response = case.call(timeout=PATIENCE_S)
        without = ["positive_data_acceptance"]
        dry = isinstance(case.body, dict) and case.body.get("dry_run") is True
        if response.status_code == 200 and path in POSTS and (dry or cases.failed_items(response)):
            # What a set lacks costs that set and not the request: it was refused, in an answer of 200. A dry run looks
            # at no set.
            without.append("negative_data_rejection")
        cases.check(case, response, *without)
        if response.status_code == 422:  # in the words of the wire, and not of the library behind it
            assert " should " not in response.text
        seen[response.status_code] += 1

    for mode in (cases.POSITIVE, cases.NEGATIVE):
        if mode is cases.POSITIVE or path not in GETS:
            cases.drawn(operation, mode, ask)
        for case in cases.derived(schema, operation, mode):
            ask(case)
    assert set(seen) <= {200, 405, 415, 422}
    assert {200, 405} <= set(seen)
    if path not in GETS:
        assert seen.total() >= 2 * cases.EXAMPLES


@pytest.mark.parametrize("path", [*POSTS, *REWARDS])
def test_requests_that_fit_the_schema_reach_the_arithmetic(cases, schema, path):
    """Of what is drawn from the schema, and of what is derived from it, a good part is answered."""
    operation = cases.operation_of(schema, path)
    drawn, derived = Counter(), Counter()
    cases.drawn(operation, cases.POSITIVE, lambda case: drawn.update([case.call(timeout=PATIENCE_S).status_code]))
    derived.update(
        case.call(timeout=PATIENCE_S).status_code for case in cases.derived(schema, operation, cases.POSITIVE)
    )
    for seen in (drawn, derived):
        assert seen.total() >= cases.EXAMPLES or path in REWARDS
        # Half of what is drawn for /classify are conversations, of which the last message has to be the assistant's.
        assert seen[200] / seen.total() >= (LEAST_SHARE / 2 if path in REWARDS else LEAST_SHARE), seen
