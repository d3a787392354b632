import json
from datetime import timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.client.exchanges import answer_of, parsed, public_url, written
from creditd.client.steps import Failure
from recordings import PLAIN, changed

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    TEXTS,
    TEXTS,
    st.none() | TEXTS,
    st.none() | st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | TEXTS, min_size=1, max_size=1),
    st.none() | st.builds(Failure, TEXTS, st.none() | st.integers(100, 599), st.none() | TEXTS, TEXTS),
    st.floats(0, 1e6),
    st.datetimes(timezones=st.just(timezone.utc)),
)
def test_reading_gives_what_was_written(url, name, response, ids, error, elapsed_s, time) -> None:
    """A file holds every field of its exchange, whatever the texts contain."""
    exchange = changed(
        url=url,
        request_id=name,
        response=response,
        ids=None if ids is None else tuple(ids),
        error=error,
        elapsed_s=elapsed_s,
        time=time,
    )
    assert parsed(written(exchange)) == exchange


def test_fields_of_a_later_version_are_passed_over() -> None:
    """A file with more in it is still read."""
    document = json.loads(written(PLAIN)) | {"more": 1}
    assert parsed(json.dumps(document).encode()) == PLAIN


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not JSON"),
        (b"\x00\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a recorded exchange"),
        (b'{"credits": [1]}', "not a recorded exchange"),
        (b'{"format": 2}', "got format 2; this version reads format 1"),
        (b'{"format": 1}', "time: "),
    ],
)
def test_rubbish_is_told_in_one_sentence(content, sentence) -> None:
    """What is no recording is refused for what it is."""
    with pytest.raises(ValueError, match=sentence) as caught:
        parsed(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"operation": "/v1/other"}, "operation"),
        ({"request": "no JSON"}, "request: not JSON"),
        ({"request": "[]"}, "expected the columns"),
        ({"request": '{"rewards": 3}'}, "expected the columns"),
        ({"operation": "/v1/credit/shapley", "request": '{"sets": []}'}, "expected the columns"),
        (
            {
                "operation": "/v1/credit/shapley",
                "request": '{"columns": {"rewards": {"values": [], "row_splits": [0, 2, 1]}}}',
            },
            "never fall",
        ),
        (
            {
                "operation": "/v1/credit/shapley",
                "request": '{"columns": {"rewards": {"values": [], "row_splits": [1e999]}}}',
            },
            "expected the columns",
        ),
        ({"ids": ("a", "b")}, "one per set"),
    ],
)
def test_a_request_that_this_client_never_sends_is_not_repeated(fields, sentence) -> None:
    """A recording whose request was changed into something else is refused when it is read."""
    with pytest.raises(ValueError, match=sentence):
        parsed(written(changed(**fields)))


def test_a_recorded_answer_that_is_none_is_told() -> None:
    """Neither an error nor an answer in the schema: there is nothing to compare with."""
    for response in (None, "", "{}", '{"advantages": [[1.0, 2.0]]}'):
        with pytest.raises(ValueError, match="response"):
            answer_of(changed(response=response))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("local:", "local:"),
        ("http://credit:8400", "http://credit:8400"),
        ("https://ann:p%40w@credit.test:1/x?key=1#y", "https://credit.test:1/x"),
        ("http://ann@[::1]:8400", "http://[::1]:8400"),
    ],
)
def test_an_address_loses_its_credentials_and_nothing_else(url, expected) -> None:
    """User, password, query and fragment go."""
    assert public_url(url) == expected
