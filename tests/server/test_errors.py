import json

import anyio
import pytest

from creditd.scoring.candidate_credit import score_candidate_sets
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from creditd.wire.errors import ERROR_KINDS, MAX_ERRORS, ErrorCode, Problem, problem
from creditd.wire.validation import WireError
from server.running import (
    COMPOSE,
    GROUP,
    JSON,
    OAR,
    SCAR,
    SCAR_SOLVE,
    SHAPLEY,
    columnar,
    gated,
    get,
    nested,
    on_service,
    post,
)

SENT = "said-once-SENT"
PROBLEM_FIELDS = {"type", "title", "status", "detail", "code", "request_id", "retryable", "errors"}
MAX_PROBLEM_BYTES = 64 * 1024


def problem_of(response, code, model=Problem):
    """The problem document of a response, checked against the table of codes; a model of it may have more fields."""
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert set(document) >= PROBLEM_FIELDS
    assert set(document) == set(model.model_fields)
    model.model_validate_json(response.content)
    kind = ERROR_KINDS[ErrorCode(code)]
    assert document["code"] == code
    assert response.status_code == document["status"] == kind.status
    assert (document["type"], document["title"]) == (f"urn:creditd:error:{code}", kind.title)
    assert document["retryable"] is kind.retryable
    assert document["request_id"] == response.headers["x-request-id"]
    assert len(document["errors"]) <= MAX_ERRORS
    return document


# The table of codes


def test_every_code_has_its_kind():
    """Every code has one kind and no kind is without its code."""
    assert set(ERROR_KINDS) == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_says_status_and_title_and_whether_to_retry(code):
    """A code is an HTTP failure with a sentence for a title; it is retryable exactly if the service is to blame."""
    kind = ERROR_KINDS[code]
    assert kind.status in {401, 403, 404, 405, 409, 413, 415, 422, 500, 502, 503, 504}
    assert kind.retryable is (kind.status in {500, 502, 503, 504})
    assert kind.title.endswith(".")
    assert code.value == code.name.lower()


@pytest.mark.parametrize("code", ErrorCode)
def test_a_problem_document_follows_from_its_code(code):
    """The document of a code has RFC 9457's fields with the code's values."""
    document = problem(code, "why", request_id="r").model_dump()
    assert set(document) == PROBLEM_FIELDS
    assert document["status"] == ERROR_KINDS[code].status
    assert document["type"] == f"urn:creditd:error:{code.value}"


# What a problem may hold

REVEALING = {
    "unknown field's value": {"sets": [], "columns": None, "extra": SENT},
    "unknown long field": {"x" * 300 + SENT: 1},
    "wrong type": {"sets": SENT},
    "wrong type in columns": {"columns": {"rewards": {"values": [SENT], "row_splits": [0, 1]}}},
    "wrong type in rows": {"columns": {"rewards": [[SENT]]}},
    "wrong reward": {"sets": [{"candidates": [{"reward": SENT}]}]},
    "wrong tag": {"utility": {"type": SENT}},
    "long tag": {"credit": {"type": SENT * 5000}},
    "tag of no name": {"credit": {"type": {SENT: SENT}}},
    "plain choice": {"credit": SENT},
    "blend": {"credit": {"type": "blend", "from": SENT, "to": "shapley", "position": 0.5}},
    "mixture": {"credit": {"type": "mixture", "weights": [SENT]}},
    "literal": {"advantage": {"type": SENT}},
    "boolean": {"dry_run": SENT},
    "long id": {"sets": [{"id": SENT * 50, "candidates": []}]},
    "long group": {"columns": {"rewards": [[1.0]], "groups": [SENT * 50]}},
    "splits": {"columns": {"rewards": {"values": [], "row_splits": [SENT]}}},
    "text": {"sets": [{"candidates": [{"reward": 1.0, "text": [SENT]}]}]},
    "two forms": {**nested([[1.0]]), **columnar([[1.0]]), "columns": {"rewards": [[1.0]], "groups": [SENT]}},
    "lonely group": {"sets": [{"group": SENT, "candidates": []}, {"candidates": []}]},
    "column lengths": {"columns": {"rewards": [[1.0]], "texts": [SENT, SENT]}},
    "two rewards": {
        "sets": [{"candidates": [{"reward": 1.0, "text": SENT}, {"reward": 0.0, "text": SENT}]}],
        "malformed": {"duplicates": "collapse"},
    },
    "bad set": {"sets": [{"id": SENT, "group": SENT, "candidates": [{"reward": float("nan"), "text": SENT}]}]},
}


@pytest.mark.parametrize("case", REVEALING)
def test_a_problem_never_repeats_the_input(case, log):
    """Whatever is wrong and wherever it stands, neither the problem nor the log repeats what was sent."""
    response = post(REVEALING[case])
    assert response.status_code == 422
    problem_of(response, response.json()["code"])
    assert SENT not in response.text
    assert len(response.content) < 4096
    assert not any(SENT in line for line in log.texts)


@pytest.mark.parametrize(
    "body",
    [SENT, f'{{"sets": {SENT}', f'"{SENT}"', f'{{"{SENT}', "", "null", "[]", b"\xff\xfe" + SENT.encode()],
)
def test_what_is_not_json_is_not_repeated(body, log):
    """A body that is no JSON object is an invalid request, told without a word of it."""
    response = post(body)
    problem_of(response, "invalid_request")
    assert SENT not in response.text
    assert not any(SENT in line for line in log.texts)


def test_an_unknown_field_is_named_in_64_characters():
    """An unknown field is named by pointer, cut to a bounded length."""
    document = problem_of(post({**nested(), "z" * 500: 1}), "unknown_field")
    assert document["errors"][0]["pointer"] == "/" + "z" * 64


BAD_FLOATS = ",".join(['"not a number"'] * 140_000)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"columns": {{"rewards": [[{BAD_FLOATS}]]}}}}',
        f'{{"columns": {{"rewards": {{"values": [{BAD_FLOATS}], "row_splits": [0]}}}}}}',
        f'{{"columns": {{"rewards": [[1.0]], "groups": [{BAD_FLOATS.replace("a number", "a" * 300)[:2_000_000]}x"]}}}}',
        '{"sets": [' + ",".join(['{"candidates": [{"reward": "x"}, {"reward": "y"}]}'] * 40_000) + "]}",
        '{"columns": {"rewards": [' + ",".join(['["x"]'] * 300_000) + "]}}",
    ],
    ids=["rows", "values", "names", "sets", "short rows"],
)
def test_two_megabytes_of_rubbish_get_a_short_answer(body):
    """Two megabytes of wrong values are answered with less than 64 KB and at most ten entries."""
    response = post(body)
    problem_of(response, "invalid_request")
    assert len(response.content) < MAX_PROBLEM_BYTES


def test_two_megabytes_of_rubbish_rewards_get_a_short_answer():
    """The group route is as terse."""
    response = post(f'{{"rewards": [[{BAD_FLOATS}]]}}', GROUP)
    problem_of(response, "invalid_request")
    assert len(response.content) < MAX_PROBLEM_BYTES


def test_two_thousand_unknown_fields_get_a_short_answer():
    """At most ten unknown fields are named."""
    response = post({f"field_{number}": 0 for number in range(2000)})
    problem_of(response, "unknown_field")
    assert len(response.content) < MAX_PROBLEM_BYTES


# Outside the body


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-msgpack", "application/jsonp", SENT])
def test_another_media_type_is_refused(kind, log):
    """Anything but JSON is 415, and the type that came is not repeated."""

    async def ask(service):
        headers = {} if kind is None else {"Content-Type": kind}
        return await service.client.post(SHAPLEY, content=json.dumps(nested()), headers=headers)

    response = on_service(ask)
    problem_of(response, "unsupported_media_type")
    assert SENT not in response.text
    assert not any(SENT in line for line in log.texts)


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_parameters_and_case_of_the_media_type_do_not_matter(kind):
    """JSON is JSON in any case and with parameters."""
    assert post(nested(), headers={"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP, identity"])
def test_a_compressed_body_is_refused(encoding):
    """A compressed body is 415: no body expands in here."""
    problem_of(post(nested(), headers={"Content-Encoding": encoding}), "unsupported_media_type")


@pytest.mark.parametrize("path", [SHAPLEY, GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE])
def test_a_declared_length_beyond_the_limit_is_refused_unread(path):
    """Content-Length alone is enough for 413: not one byte of the body is read."""

    async def body():
        raise AssertionError("the body was read")
        yield b""

    async def ask(service):
        headers = {**JSON, "Content-Length": "1025"}
        return await service.client.post(path, content=body(), headers=headers)

    document = problem_of(on_service(ask, max_body_bytes=1024), "body_too_large")
    assert "1024" in document["detail"]


def test_a_stream_beyond_the_limit_is_refused():
    """Without Content-Length the body is counted while it comes, and reading stops at the limit."""
    sent = 0

    async def body():
        nonlocal sent
        while True:
            sent += 512
            yield b" " * 512

    async def ask(service):
        return await service.client.post(SHAPLEY, content=body(), headers=JSON)

    problem_of(on_service(ask, max_body_bytes=1024), "body_too_large")
    assert sent == 3 * 512


def test_a_body_of_the_limit_is_answered():
    """The limit itself is allowed; one byte more is not."""
    body = json.dumps(nested())
    assert post(body.ljust(1024), max_body_bytes=1024).status_code == 200
    assert post(body.ljust(1025), max_body_bytes=1024).status_code == 413


@pytest.mark.parametrize(
    "path", ["/nope", "/index.html", "http://service//", "/v1", "/v1/credit", "/v1/credit/shapley/x", "/docs", "/redoc"]
)
def test_an_unknown_path_is_a_problem(path):
    """A path that nothing answers is 404 with a problem document."""
    problem_of(get(path), "not_found")


@pytest.mark.parametrize("path", [SHAPLEY + "/", "/v1/info/", "/livez/"])
def test_a_trailing_slash_is_another_path(path):
    """No redirect is made up from the Host header: a path is answered or it is not."""
    problem_of(get(path, headers={"Host": "evil.example"}), "not_found")


@pytest.mark.parametrize(("method", "path"), [("GET", SHAPLEY), ("PUT", GROUP), ("POST", "/v1/info")])
def test_an_unknown_method_is_a_problem(method, path):
    """A method that a route does not take is 405 with a problem document."""
    problem_of(on_service(lambda service: service.client.request(method, path)), "method_not_allowed")


@pytest.mark.parametrize(("method", "path", "allowed"), [("GET", SHAPLEY, "POST"), ("POST", "/v1/info", "GET")])
def test_a_refused_method_names_the_allowed_ones(method, path, allowed):
    """RFC 9110 §15.5.6: a 405 carries Allow."""
    response = on_service(lambda service: service.client.request(method, path))
    assert allowed in response.headers.get("allow", "")


# Deadlines


@pytest.mark.parametrize("path", [SHAPLEY, GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE])
@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1e3", "soon", "٣", "1000000001", "9" * 30, "1 2", SENT])
def test_a_deadline_that_is_no_number_is_refused(text, path):
    """The header is a whole number of milliseconds from 1 to 10^9, or the request is invalid."""
    headers = {b"X-Request-Timeout-Ms": text.encode(), b"Content-Type": b"application/json"}

    async def ask(service):
        return await service.client.post(path, content="{}", headers=headers)

    document = problem_of(on_service(ask), "invalid_request")
    assert document["errors"][0]["pointer"] == "X-Request-Timeout-Ms"
    assert SENT not in json.dumps(document)


def test_a_long_deadline_is_fine():
    """A deadline that is far away changes nothing."""
    assert post(nested(), headers={"X-Request-Timeout-Ms": "1000000000"}).status_code == 200


def test_work_beyond_the_deadline_is_504_and_what_has_not_begun_never_begins():
    """A computation that takes longer than its caller waits is 504; one that waited in the queue is not begun."""
    gate, resources = gated(compute_threads=1)

    async def ask(service):
        gate.opened.clear()
        before = gate.calls
        late, queued = [], []

        async def collect(into):
            into.append(await service.post(nested(), **{"X-Request-Timeout-Ms": "50"}))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect, late)
            await service.in_flight(1)
            tasks.start_soon(collect, queued)
        begun = gate.calls - before
        gate.opened.set()
        after = await service.post(nested())
        return [*late, *queued], begun, after, gate.calls - before

    responses, begun, after, calls = on_service(ask, resources)
    for response in responses:
        problem_of(response, "deadline_exceeded")
    assert begun == 1
    assert after.status_code == 200
    assert calls == 2


def test_the_setting_bounds_every_deadline():
    """A caller cannot wait longer than the setting, with a header or without."""
    gate, resources = gated(request_timeout_s=0.05)

    async def ask(service):
        gate.opened.clear()
        responses = [await service.post(nested(), **headers) for headers in ({}, {"X-Request-Timeout-Ms": "100000"})]
        gate.opened.set()
        return responses

    for response in on_service(ask, resources):
        problem_of(response, "deadline_exceeded")


def test_a_body_that_does_not_come_is_504():
    """Waiting for the body counts: the deadline holds while it is being sent."""

    async def body():
        yield b"{"
        await anyio.sleep(60)

    async def ask(service):
        headers = {**JSON, "X-Request-Timeout-Ms": "50"}
        return await service.client.post(SHAPLEY, content=body(), headers=headers), service.resources.in_flight

    response, in_flight = on_service(ask)
    problem_of(response, "deadline_exceeded")
    assert in_flight == 0


# Failures of the service


def test_a_failure_inside_is_500_without_its_text(log):
    """An exception of the computation is a problem without a word of it; the log finds it by the request's id."""

    def score(batch, options, rejected, deadline):
        if len(batch.rewards) == 1:
            raise RuntimeError(SENT)
        return score_candidate_sets(batch, options, rejected, deadline)

    resources = Resources(Settings(), score_sets=score)

    async def ask(service):
        first = await service.post(nested([[1.0]]), **{"X-Request-Id": "find-me"})
        return first, await service.post(nested()), service.resources.in_flight

    first, second, in_flight = on_service(ask, resources)
    document = problem_of(first, "internal")
    assert SENT not in first.text
    assert document["request_id"] == "find-me"
    assert second.status_code == 200
    assert in_flight == 0
    assert [(line["status"], line["failure"]) for line in log.requests if line["status"] == 500] == [
        (500, "RuntimeError")
    ]
    assert any("find-me" in line["message"] and "traceback" in line for line in log.others)


def test_a_failing_warm_up_fails_the_start():
    """A service that cannot answer its own example does not start."""

    def broken(*_):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        on_service(None, Resources(Settings(), score_sets=broken))


# The identity of a request


@pytest.mark.parametrize("given", ["abc", "A-1_b.c:d", "x" * 64])
def test_a_sane_request_id_comes_back(given):
    """The caller's id is the request's, in header and body, on success and on failure."""
    response = post(nested(), headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == response.json()["request_id"] == given
    response = post("rubbish", headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == response.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a"b', "a\tb", "é", "{}", None])
def test_any_other_request_id_is_replaced(given):
    """An id that could harm a log is replaced by a fresh one."""
    headers = {} if given is None else {"X-Request-Id": given.encode()}

    async def ask(service):
        pair = [
            await service.client.post(SHAPLEY, content=json.dumps(nested()), headers={**JSON, **headers})
            for _ in range(2)
        ]
        return [response.headers["x-request-id"] for response in pair]

    first, second = on_service(ask)
    assert first != second
    assert len(first) == 32
    assert int(first, 16) >= 0


def test_the_wire_error_counts_its_other_offences():
    """The sentence of an error names the first offence and how many more there are."""
    error = WireError(
        ErrorCode.INVALID_REQUEST,
        tuple(problem_item(number) for number in range(3)),
    )
    assert error.detail == "/0: wrong (and 2 more)"


def problem_item(number):
    """One offence."""
    return Problem.model_validate(
        {
            "type": "",
            "title": "",
            "status": 422,
            "detail": "",
            "code": ErrorCode.INVALID_REQUEST,
            "request_id": "",
            "retryable": False,
            "errors": ({"pointer": f"/{number}", "code": ErrorCode.INVALID_REQUEST, "detail": "wrong"},),
        }
    ).errors[0]
