import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from creditd.engines.errors import (
    EngineExpiredError,
    EngineFailedError,
    EngineOverloadedError,
)
from creditd.engines.model_spec import HeadChoice
from creditd.engines.remote_calls import UnreachableError
from engines.remotes import KEY, asked, one, scored
from engines.vllm_answers import (
    BAD_GATEWAY,
    BUSY,
    ENGINE_DEAD,
    GATEWAY_TIMEOUT,
    MALFORMED,
    MAX_MODEL_LEN,
    NO_CLASSIFIER,
    NO_ROUTE,
    UNAUTHORIZED,
    UNKNOWN_MODEL,
    UNKNOWN_TASK,
    classified,
)
from engines.vllm_server import PATIENCE_S, VllmServer, plain

SECRET = "SECRET"  # noqa: S105 - a word that no message may repeat


def failure_of(engine, *texts, within_s=math.inf):
    """The error of texts, which has none of their words and no key."""
    with pytest.raises((EngineFailedError, EngineOverloadedError, EngineExpiredError)) as failed:
        asked(engine, *texts, within_s=within_s).result(PATIENCE_S)
    assert SECRET not in str(failed.value)
    assert KEY not in str(failed.value)
    assert len(str(failed.value)) < 300
    return failed.value


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_wedged_server_never_holds_a_request_beyond_its_deadline(server, engine_of, fault):
    """Silence, and bytes without an end, are an expired deadline; nothing waits any more."""
    server.always = getattr(server, fault)
    engine = engine_of(server)
    began = time.monotonic()
    assert type(failure_of(engine, one("a"), within_s=0.2)) is EngineExpiredError
    assert 0.2 <= time.monotonic() - began < 5
    assert engine.status().queued_tokens == 0


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_wedged_server_never_holds_an_attempt_beyond_its_time(server, engine_of, fault):
    """Without a deadline the time of an attempt ends it, and it is not repeated."""
    server.always = getattr(server, fault)
    error = failure_of(engine_of(server, timeout_s=0.2), one("a"))
    assert type(error) is UnreachableError
    assert "did not answer in 0.2 s" in str(error)
    assert len(server.scored) == 1


def test_others_are_answered_while_one_request_hangs(server, engine_of):
    """A call that hangs takes one connection, and no other request's time."""
    server.script = [server.hang]
    engine = engine_of(server, max_connections=2)
    waiting = asked(engine, one("a"), within_s=20.0)
    while not server.scored:
        time.sleep(0.01)
    assert scored(engine, one("b")).rewards.tolist() == plain("why?b")
    assert not waiting.done()


def test_waiting_for_a_connection_is_within_the_deadline(server, engine_of):
    """Who waits behind a call that hangs is told at the deadline."""
    server.script = [server.hang]
    engine = engine_of(server, max_connections=1)
    asked(engine, one("a"))
    assert type(failure_of(engine, one("b"), within_s=0.2)) is EngineExpiredError


def test_a_deadline_that_has_passed_costs_no_request(server, engine_of):
    """What nobody waits for is not asked."""
    engine = engine_of(server)
    assert type(failure_of(engine, one("a"), within_s=-1.0)) is EngineExpiredError
    assert server.requests == []


def test_a_server_that_is_killed_fails_what_it_had_and_what_comes(server, engine_of):
    """A server that dies in the middle leaves an error, and so does one that is not there any more."""
    server.always = server.hang
    engine = engine_of(server)
    waiting = asked(engine, one("a"))
    while not server.scored:
        time.sleep(0.01)
    server.kill()
    with pytest.raises(UnreachableError):
        waiting.result(PATIENCE_S)
    error = failure_of(engine, one("b"))
    assert "cannot be reached: ConnectError, in 4 attempts" in str(error)


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from engines.vllm_server import VllmServer
server = VllmServer(delay_s=float(sys.argv[2]))
print(server.url, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_stopped_leaves_nobody_waiting(engine_of, sent):
    """Requests that a server has, and those that come after, end by their deadline with an error."""
    tests = str(Path(__file__).resolve().parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, tests, str(PATIENCE_S)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            engine = engine_of(SimpleNamespace(url=process.stdout.readline().strip()), max_connections=2)
            began = time.monotonic()
            waiting = [asked(engine, one(f" {number}"), within_s=2.0) for number in range(5)]
            while engine.status().queued_tokens and time.monotonic() - began < 0.3:
                time.sleep(0.01)
            process.send_signal(sent)
            waiting += [asked(engine, one(f" later {number}"), within_s=2.0) for number in range(5)]
            for answer in waiting:
                assert isinstance(answer.exception(PATIENCE_S), EngineExpiredError | UnreachableError)
            assert time.monotonic() - began < 20
            assert engine.status().queued_tokens == 0
        finally:
            process.kill()


def test_a_server_that_comes_back_is_asked_again(server, engine_of):
    """A connection that is closed without a byte is tried once more."""
    server.script = [server.drop]
    assert scored(engine_of(server), one("a")).rewards.tolist() == plain("why?a")
    server.script = [server.drop, server.drop]
    error = failure_of(engine_of(server), one("a"))
    assert "cannot be reached" in str(error)
    assert len(server.scored) == 4


def test_an_answer_that_breaks_off_is_an_error_and_not_repeated(server, engine_of):
    """Half an answer is none."""
    server.script = [server.break_off]
    error = failure_of(engine_of(server), one("a"))
    assert type(error) is UnreachableError
    assert "broke off its answer" in str(error)
    assert len(server.scored) == 1


def test_an_answer_without_an_end_is_cut_off(server, engine_of):
    """No answer takes more memory than its texts may need."""
    server.script = [server.flood]
    assert "more than" in str(failure_of(engine_of(server), one("a")))


@pytest.mark.parametrize("answer", [BUSY, (429, {"error": "slow down"})])
def test_a_busy_server_is_asked_again_when_it_says(server, engine_of, answer):
    """`Retry-After` is obeyed, and the scores come when the server takes them."""
    server.script = [(*answer, {"retry-after": "1"})]
    began = time.monotonic()
    assert scored(engine_of(server), one("a")).rewards.tolist() == plain("why?a")
    assert time.monotonic() - began >= 1
    assert len(server.scored) == 2


def test_a_server_that_wants_more_time_than_anybody_has_is_overloaded(server, engine_of):
    """The caller learns when to come again."""
    server.script = [(*BUSY, {"retry-after": "3600"})]
    error = failure_of(engine_of(server), one("a"))
    assert type(error) is EngineOverloadedError
    assert error.retry_after_s == 3600
    assert "HTTP 503 Service Unavailable" in str(error)
    assert len(server.scored) == 1


def test_a_wait_that_is_asked_for_ends_at_the_deadline(server, engine_of):
    """Who cannot wait as long as the server asks is told at their deadline."""
    server.always = (*BUSY, {"retry-after": "30"})
    assert type(failure_of(engine_of(server), one("a"), within_s=0.2)) is EngineExpiredError


@pytest.mark.parametrize(("answer", "n_attempts"), [(BAD_GATEWAY, 3), (GATEWAY_TIMEOUT, 2), (ENGINE_DEAD, 1)])
def test_errors_of_the_server_are_repeated_a_few_times_at_most(server, engine_of, answer, n_attempts):
    """What stands before the server may have lost an answer; the server's own defect is not met again."""
    server.always = answer
    error = failure_of(engine_of(server), one("a"))
    assert type(error) is UnreachableError
    assert f"HTTP {answer[0]}" in str(error)
    assert len(server.scored) == n_attempts


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (UNAUTHORIZED, "HTTP 401; expected remote.key"),
        (UNKNOWN_MODEL, "HTTP 404 NotFoundError; expected remote.route 'classify' to be there, with remote.model"),
        (NO_ROUTE, "HTTP 404 Not Found; expected remote.route"),
        (NO_CLASSIFIER, "HTTP 501 NotImplementedError; expected a model for classification"),
        (UNKNOWN_TASK, "HTTP 400 BadRequestError (task); expected 200"),
        (MALFORMED, "HTTP 400 Bad Request (input); expected 200"),
        ((307, ""), "HTTP 307; expected 200"),
        ((418, {"error": {"type": SECRET, "param": SECRET, "message": SECRET}}), "HTTP 418; expected 200"),
    ],
)
def test_a_refusal_is_an_error_at_once(server, engine_of, answer, said):
    """What will not change is not asked again; the status and known names are said, and no word of the server's own."""
    server.script = [answer]
    error = failure_of(engine_of(server, key=KEY), one(SECRET), one("b"))
    assert type(error) is EngineFailedError
    assert said in str(error)
    assert "'judge'" in str(error)
    assert len(server.scored) == 1


def test_one_failed_part_ends_the_others(server, engine_of):
    """A request of many parts fails once, and asks for nothing more."""
    server.script = [ENGINE_DEAD]
    engine = engine_of(server, texts_per_request=1, max_connections=1)
    failure_of(engine, *(one(f" {number}") for number in range(20)))
    assert scored(engine, one("a")).rewards.tolist() == plain("why?a")
    assert len(server.scored) == 2


@pytest.mark.parametrize("route", ["classify", "pooling"])
def test_texts_that_are_too_long_or_empty_fail_alone(server, engine_of, route):
    """The server refuses the whole request: the offending texts are found, and the others are scored."""
    texts = [f" {number}" for number in range(64)]
    texts[7] = texts[40] = "x" * MAX_MODEL_LEN
    prompts = ["why?" if place != 11 else "" for place in range(64)]
    texts[11] = ""
    engine = engine_of(server, route=route)
    assert engine.check() is None
    asked_before = len(server.scored)
    found = scored(engine, *(one(text, prompt) for text, prompt in zip(texts, prompts, strict=True)))
    assert set(found.failures) == {7, 11, 40}
    assert {failure.code for failure in found.failures.values()} == {"context_exceeded"}
    assert f"1 to {MAX_MODEL_LEN} tokens" in found.failures[7].detail
    assert np.flatnonzero(np.isnan(found.rewards)).tolist() == [7, 11, 40]
    assert found.rewards[8] == plain("why? 8")[0]
    assert len(server.scored) - asked_before <= 2 * 3 * 6 + 1


def test_texts_that_are_all_too_long_cost_at_most_two_requests_each(server, engine_of):
    """The search for what was refused is bounded."""
    found = scored(engine_of(server), *(one("x" * (MAX_MODEL_LEN + number)) for number in range(8)))
    assert len(found.failures) == 8
    assert len(server.scored) == 15
    assert np.isnan(found.rewards).all()


@pytest.mark.parametrize("route", ["classify", "pooling"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_fails_its_text_alone(engine_of, route, value):
    """`/classify` refuses to write such an answer, `/pooling` writes null: either is a failure, never a number."""
    with VllmServer(logits=lambda text: [value] if "bad" in text else plain(text)) as server:
        found = scored(engine_of(server, route=route), one("a"), one("bad"), one("c"))
    assert found.rewards[[0, 2]].tolist() == [plain("why?a")[0], plain("why?c")[0]]
    assert (math.isnan(found.rewards[1]), set(found.failures)) == (True, {1})
    assert found.failures[1].code == "non_finite_utility"


@pytest.mark.parametrize("logits", [[-1.0, math.nan], [math.nan, -1.0]], ids=["the second", "the first"])
def test_a_margin_needs_both_of_its_numbers(engine_of, logits):
    """A margin with something that is no number is none; a label beside the chosen one may be what it is."""
    with VllmServer(logits=lambda _: logits) as server:
        engine = engine_of(server, route="pooling", head=HeadChoice(margin=(0, 1)))
        assert set(scored(engine, one("a")).failures) == {0}


def test_results_are_taken_by_their_index(server, engine_of):
    """An answer in another order is the same answer."""

    def reversed_order(handler):
        status, answer = server.answer(handler.path, handler.headers, server.scored[-1])
        handler.reply(status, answer | {"data": answer["data"][::-1]})

    server.script = [reversed_order]
    found = scored(engine_of(server), *(one(text) for text in "abc"))
    assert found.rewards.tolist() == [plain(f"why?{text}")[0] for text in "abc"]


def without(field, answer):
    """An answer whose first result lacks a field."""
    first, *others = answer["data"]
    return answer | {"data": [{name: value for name, value in first.items() if name != field}, *others]}


def with_first(answer, **fields):
    """An answer whose first result has other fields."""
    first, *others = answer["data"]
    return answer | {"data": [first | fields, *others]}


GOOD = classified([[1.0], [2.0]], 7)
WRONG = {
    "not JSON": "SECRET",
    "no object": json.dumps([SECRET]),
    "deep": "[" * 100_000,
    "no data": {SECRET: 1},
    "data is no list": GOOD | {"data": {"0": SECRET}},
    "one too few": GOOD | {"data": GOOD["data"][:1]},
    "one too many": GOOD | {"data": [*GOOD["data"], GOOD["data"][0] | {"index": 2}]},
    "no index": without("index", GOOD),
    "an index twice": with_first(GOOD, index=1),
    "an index beyond": with_first(GOOD, index=2),
    "an index that is no number": with_first(GOOD, index=False),
    "no numbers": without("probs", GOOD),
    "an empty list": with_first(GOOD, probs=[], num_classes=0),
    "a string": with_first(GOOD, probs=["1.0"]),
    "a truth": with_first(GOOD, probs=[True]),
    "a list of lists": with_first(GOOD, probs=[[1.0]]),
    "one number": with_first(GOOD, probs=1.0),
    "another number of classes": with_first(GOOD, num_classes=2),
    "different numbers of classes": with_first(GOOD, probs=[1.0, 2.0], num_classes=2),
    "a result that is no object": GOOD | {"data": [SECRET, GOOD["data"][1]]},
    "the answer of the other route": GOOD | {"data": [{"index": 0, "data": [1.0]}, {"index": 1, "data": [2.0]}]},
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_of_another_shape_is_an_error(server, engine_of, name):
    """No part of such an answer becomes a number."""
    server.script = [(200, WRONG[name])]
    assert type(failure_of(engine_of(server), one("a"), one("b"))) is EngineFailedError
    assert len(server.scored) == 1


@pytest.mark.parametrize("written", ["NaN", "-Infinity", "null", "1e999", "1" + "0" * 400])
def test_numbers_beyond_json_are_failures_of_their_texts(server, engine_of, written):
    """Whatever a server writes for what is no finite number, it is none."""
    server.script = [(200, json.dumps(GOOD).replace("[1.0]", f"[{written}]"))]
    found = scored(engine_of(server), one("a"), one("b"))
    assert (math.isnan(found.rewards[0]), found.rewards[1]) == (True, 2.0)
    assert found.failures[0].code == "non_finite_utility"


def test_token_counts_that_make_no_sense_are_none(server, engine_of):
    """Usage is for bills, not for scores: an answer without it is an answer."""
    for usage in ({}, {"prompt_tokens": -3}, {"prompt_tokens": "SECRET"}, None):
        server.script = [(200, GOOD | {"usage": usage})]
        found = scored(engine_of(server), one("a"), one("b"))
        assert (found.rewards.tolist(), found.usage.tokens_computed) == ([1.0, 2.0], 0)


def test_a_head_of_several_labels_needs_a_choice(engine_of):
    """Which number is the reward is said by the registration, never guessed."""
    with VllmServer(logits=lambda _: [-2.0, 3.0]) as server:
        assert "expected one, or a choice: head.index, or head.margin" in str(failure_of(engine_of(server), one("a")))
        error = failure_of(engine_of(server, head=HeadChoice(index=2)), one("a"))
        assert "has 2 labels; head names [2]" in str(error)


def test_probabilities_that_were_not_asked_for_are_an_error(engine_of):
    """A server that does not know how to leave out the softmax is found out where there are several labels."""
    with VllmServer(logits=lambda _: [0.25, 0.7499999, 0.0000001]) as server:
        assert "answered with probabilities" in str(failure_of(engine_of(server, head=HeadChoice(index=0)), one("a")))
