from pathlib import Path

import pytest

from creditd.engines.model_spec import ModelSpec
from creditd.engines.remote_retry import retry_after, retry_delay
from creditd.engines.remote_wire import body, refusal
from engines import vllm_answers


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422, 500, 501])
def test_what_will_not_change_is_not_asked_again(status):
    """A refusal and a defect are the same the second time, whatever `Retry-After` says."""
    assert retry_delay(1, status) is None
    assert retry_delay(1, status, 1.0) is None


@pytest.mark.parametrize(
    ("outcome", "n_attempts"), [("unreached", 4), ("dropped", 2), (429, 6), (503, 6), (502, 3), (504, 2)]
)
def test_repeats_are_few_and_further_apart(outcome, n_attempts):
    """Delays double from a quarter of a second to four, and end."""
    delays = [retry_delay(attempt, outcome) for attempt in range(1, n_attempts + 2)]
    assert delays[: n_attempts - 1] == [0.25, 0.5, 1.0, 2.0, 4.0][: n_attempts - 1]
    assert delays[n_attempts - 1 :] == [None, None]


def test_what_is_asked_for_is_waited_for():
    """`Retry-After` makes a delay longer, never shorter; more than a minute is a refusal."""
    assert [retry_delay(1, 503, asked) for asked in (0.0, 10.0, 60.0, 61.0)] == [0.25, 10.0, 60.0, None]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 -0000", "date": "Wed, 21 Oct 2026 07:28:30 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT"}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers, seconds):
    """A date is measured by the clock of whoever sent it."""
    assert retry_after(headers) == seconds


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (vllm_answers.TOO_MANY_TOKENS, "too_long"),
        (vllm_answers.TOO_MANY_CHARACTERS, "too_long"),
        (vllm_answers.TOO_LONG_IN_OLDER_WORDS, "too_long"),
        (vllm_answers.TOO_LONG_FOR_THE_ENGINE, "too_long"),
        (vllm_answers.EMPTY, "empty"),
        (vllm_answers.NOT_FINITE, "non_finite"),
        (vllm_answers.TEMPLATE_REFUSES, None),
        (vllm_answers.UNKNOWN_TASK, None),
        (vllm_answers.ENGINE_DEAD, None),
        (vllm_answers.error(500, "InternalServerError", "maximum context length", "input_tokens"), None),
        ((400, "maximum context length"), None),
        ((400, "[" * 100_000), None),
        ((400, {"error": {"message": 3, "type": None, "param": ["input_tokens"]}}), None),
    ],
)
def test_a_refusal_says_whether_it_is_of_one_text(answer, reason):
    """The parameter says so, or words that no other refusal has; a status of the server's own never does."""
    status, content = answer
    found = refusal(status, vllm_answers.encoded(content))
    assert (found.status, found.reason) == (status, reason)
    assert "SECRET" not in found.name


def test_a_model_that_is_not_remote_has_no_body():
    """Only a remote model is asked over a network."""
    with pytest.raises(ValueError, match="is not remote"):
        body(ModelSpec("judge", Path("judge")), ["a"])
