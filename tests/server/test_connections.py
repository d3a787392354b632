import json
import socket
import time
from contextlib import closing, suppress

import httpx
import pytest

from creditd.server.connections import MAX_HEAD_BYTES
from server.processes import PATIENCE_S, slow_service, wait_until
from server.running import SHAPLEY, nested

pytestmark = pytest.mark.slow

BODY = json.dumps(nested()).encode()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service that computes without waiting."""
    with slow_service(tmp_path_factory.mktemp("service")) as running:
        running.let_pass()
        yield running


def head(length, *more):
    """The lines of a request for credit before its body."""
    lines = (f"POST {SHAPLEY} HTTP/1.1", "Host: service", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, *more, "", "")).encode()


def connect(service):
    """A bare connection."""
    return closing(socket.create_connection(("127.0.0.1", service.port), PATIENCE_S))


def answered(service):
    """Whether another caller is answered meanwhile."""
    return (
        httpx.post(
            f"{service.url}{SHAPLEY}", content=BODY, headers={"Content-Type": "application/json"}, timeout=PATIENCE_S
        ).status_code
        == 200
    )


def received(raw):
    """All bytes up to the end of the connection."""
    parts = []
    while part := raw.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_slow_body_holds_nobody_up(service):
    """While one body trickles in others are answered, and it is answered in the end."""
    with connect(service) as raw:
        raw.sendall(head(len(BODY), "Connection: close"))
        for start in range(0, 40, 10):
            raw.sendall(BODY[start : start + 10])
            assert answered(service)
        raw.sendall(BODY[40:])
        assert received(raw).startswith(b"HTTP/1.1 200")


def test_a_body_that_stops_meets_its_deadline(service):
    """A body that never ends is 504 at the deadline of its request, and others are answered meanwhile."""
    with connect(service) as raw:
        raw.sendall(head(len(BODY), "X-Request-Timeout-Ms: 200", "Connection: close") + BODY[:10])
        assert answered(service)
        assert raw.recv(65536).startswith(b"HTTP/1.1 504")


def test_half_closed_and_broken_connections_cost_nobody_else(service):
    """Connections closed in the middle of a head, of a body, or half-way leave the service answering and idle."""
    for part in (b"POST ", head(len(BODY)), head(len(BODY)) + BODY[:20]):
        for half in (True, False):
            with connect(service) as raw:
                raw.sendall(part)
                if half:
                    raw.shutdown(socket.SHUT_WR)
                assert answered(service)
    wait_until(lambda: service.in_flight() == 0, "every broken request has given its place back")


def test_a_caller_that_has_no_more_to_say_is_answered_or_closed(service):
    """A caller that half-closes after a whole request ends, with an answer or without, and holds nothing."""
    with connect(service) as raw:
        raw.sendall(head(len(BODY)) + BODY)
        raw.shutdown(socket.SHUT_WR)
        assert answered(service)
        assert received(raw)[:12] in {b"", b"HTTP/1.1 200"}
    wait_until(lambda: service.in_flight() == 0, "nothing is in flight")


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\x00" * 100])
def test_what_is_not_http_is_turned_away(service, rubbish):
    """A caller that speaks something else is turned away; the service goes on."""
    with connect(service) as raw:
        raw.sendall(rubbish)
        raw.shutdown(socket.SHUT_WR)
        assert received(raw)[:12] in {b"", b"HTTP/1.1 400"}
    assert answered(service)


CHUNKED = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("before", "unit"),
    [
        (head(len(BODY))[:-2], b"X-A: 1\r\n"),
        (head(len(BODY))[:-2] + b"X-A: ", b"a"),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X-A: 1\r\n"),
        (CHUNKED + b"2\r\n{}\r\n0\r\nX-A: ", b"a"),
        (CHUNKED + b"2;x=", b"a"),
        (b"GET /", b"a"),
    ],
    ids=["headers", "a header", "headers behind", "a header behind", "an extension", "a path"],
)
def test_a_head_that_does_not_end_is_refused(service, before, unit):
    """Headers without end, or an endless one, before or behind a body, are 431 before they cost memory."""
    with connect(service) as raw:
        raw.sendall(before)
        with suppress(ConnectionError):
            for _ in range(1000):
                raw.sendall(unit * (100_000 // len(unit)))
        answer = b""
        with suppress(ConnectionError):
            answer = received(raw)
        assert answer[:12] in {b"", b"HTTP/1.1 431"}
    with connect(service) as raw:
        for part in (before, unit * ((MAX_HEAD_BYTES - len(before)) // len(unit)), unit * (1000 // len(unit))):
            assert answered(service)  # what was sent has been read: an answer is lost where something is left
            raw.sendall(part)
        assert received(raw).startswith(b"HTTP/1.1 431")
    assert answered(service)


def test_large_heads_within_the_limit_are_answered(service):
    """One after another on a connection: each head is counted by itself."""
    headers = {"Content-Type": "application/json", "X-A": "a" * (MAX_HEAD_BYTES // 2)}
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as client:
        for _ in range(4):
            assert client.post(SHAPLEY, content=BODY, headers=headers).status_code == 200


def test_two_lengths_are_refused(service):
    """Content-Length beside chunked encoding, the lever of request smuggling, gets no answer of 200."""
    with connect(service) as raw:
        raw.sendall(head(len(BODY), "Transfer-Encoding: chunked", "Connection: close") + BODY)
        raw.shutdown(socket.SHUT_WR)
        assert not received(raw).startswith(b"HTTP/1.1 200")
    assert answered(service)


LARGE_ANSWER = {
    "columns": {
        "rewards": [[0.1], [0.2], [0.3], [0.5], [0.7], [0.9], [1.1], [1.3]],
        "groups": ["p"] * 8,
        "spans": {"starts": [0] * 8, "stops": [9] * 8},
        "n_tokens": [131_072] * 8,
    },
    "tokens": {"other": "set"},
}
"""A request of some hundred bytes whose answer has far more than the system keeps of a connection."""
WHOLE = 16 << 20
"""Less than the answer has."""


def test_an_answer_that_nobody_reads_is_not_kept(tmp_path):
    """An answer that lies unread is counted, and its connection is ended; others are answered meanwhile."""
    body = json.dumps(LARGE_ANSWER).encode()
    with slow_service(tmp_path, body_timeout_s=2.0) as service:
        service.let_pass()
        with connect(service) as raw:
            raw.sendall(head(len(body)) + body)
            wait_until(lambda: service.metric("creditd_held_bytes") > 1 << 20, "the answer lies unread")
            assert answered(service)
            wait_until(lambda: service.metric("creditd_held_bytes") == 0, "it is given up")
            with suppress(ConnectionError):
                assert len(received(raw)) < WHOLE


def test_unread_answers_are_bounded_together(tmp_path):
    """Answers that nobody reads end their connections when all that is held is more than the setting."""
    body = json.dumps(LARGE_ANSWER).encode()
    with slow_service(tmp_path, max_held_bytes=4096) as service:
        service.let_pass()
        with connect(service) as raw:
            raw.sendall(head(len(body)) + body)
            wait_until(lambda: service.in_flight() == 0 and answered(service), "it is given up at once")
            with suppress(ConnectionError):
                assert len(received(raw)) < WHOLE
        wait_until(lambda: service.metric("creditd_held_bytes") == 0, "nothing is held")


def test_an_answer_that_is_read_slowly_is_read_whole(tmp_path):
    """A caller who goes on reading, however slowly, gets the whole answer."""
    body = json.dumps(LARGE_ANSWER).encode()
    with slow_service(tmp_path, body_timeout_s=2.0) as service:
        service.let_pass()
        with connect(service) as raw:
            raw.sendall(head(len(body), "Connection: close") + body)
            parts = []
            for _ in range(12):
                parts.append(raw.recv(1 << 20))
                time.sleep(0.25)
            answer = b"".join(parts) + received(raw)
    start, _, text = answer.partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 200")
    assert len(text) > WHOLE
    assert len(json.loads(text)["columns"]["token_advantages"]["values"]) == 8 * 131_072


@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", b"GET /livez HTTP/1.1\r\nX: y\r\n"])
def test_a_head_has_to_arrive_in_time(tmp_path, sent):
    """A connection that says nothing, or does not end what it says, is ended."""
    with slow_service(tmp_path, body_timeout_s=0.5) as service, connect(service) as raw:
        raw.sendall(sent)
        with suppress(ConnectionError):
            assert received(raw) == b""


def test_a_connection_is_kept_between_requests(tmp_path):
    """The limit is one of heads: a connection that rests after an answer is there for the next request."""
    with slow_service(tmp_path, body_timeout_s=0.5) as service, httpx.Client(base_url=service.url) as client:
        ports = set()
        for _ in range(3):
            response = client.get("/livez", timeout=PATIENCE_S)
            ports.add(response.extensions["network_stream"].get_extra_info("client_addr"))
            time.sleep(1.0)
        assert len(ports) == 1


@pytest.mark.parametrize("behind", [b"", b"GET /livez HTTP/1.1\r\nHost: service\r\n\r\n"], ids=["alone", "pipelined"])
def test_a_caller_who_left_is_not_worked_for(tmp_path, behind):
    """A caller who goes is noticed at once, also if another request stands behind the one that is answered."""
    with slow_service(tmp_path, hold_s=10 * PATIENCE_S) as service:
        with connect(service) as raw:
            raw.sendall(head(len(BODY)) + BODY + behind)
            wait_until(lambda: service.in_flight() == 1, "the work has begun")
            time.sleep(0.2)
        wait_until(lambda: service.in_flight() == 0, "it is given up")
        service.let_pass()
        assert answered(service)
        assert b"Traceback" not in service.log.read_bytes()


def test_a_request_behind_a_long_one_is_not_cut(tmp_path):
    """A caller that sends half a head behind a request that takes long is waited for."""
    with slow_service(tmp_path, hold_s=2.0, body_timeout_s=0.5) as service, connect(service) as raw:
        livez = b"GET /livez HTTP/1.1\r\nHost: service\r\n"
        raw.sendall(head(len(BODY)) + BODY)
        time.sleep(0.2)
        raw.sendall(livez + b"\r\n" + livez[:10])
        time.sleep(0.2)
        raw.sendall(livez[10:] + b"Connection: close\r\n\r\n")
        assert received(raw).count(b"HTTP/1.1 200") == 3


def test_a_body_that_was_too_slow_ends_its_connection(service):
    """After the refusal of a body that was not read to its end the connection is closed."""
    with connect(service) as raw:
        raw.sendall(head(len(BODY), "X-Request-Timeout-Ms: 200") + BODY[:10])
        answer = received(raw)
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"connection: close" in answer.lower()
