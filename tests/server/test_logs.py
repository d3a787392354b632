import json
import logging

import orjson
import pytest

from creditd.server.logs import JsonLines
from server.running import GROUP, SHAPLEY, gated, nested, on_service, post

ALWAYS = {
    "time", "level", "logger", "message", "request_id", "method", "route", "status", "duration_ms", "bytes_in",
    "bytes_out",
}  # fmt: skip
SENT = "never-in-a-log"


def test_an_answer_is_one_line(log):
    """A request makes exactly one line, with its identity, cost and outcome."""
    body = nested([[1.0, 0.0], [float("nan")]])
    response = post(body, headers={"X-Request-Id": "r-1"})
    assert len(log.texts) == 1
    (line,) = log.requests
    assert set(line) == ALWAYS | {"items", "failed", "flags"}
    assert (line["request_id"], line["method"], line["route"], line["status"]) == ("r-1", "POST", SHAPLEY, 200)
    assert (line["items"], line["failed"]) == (2, 1)
    assert line["flags"]["group_incomplete"] == 1
    assert line["bytes_in"] == len(json.dumps(body))
    assert line["bytes_out"] == len(response.content)
    assert line["duration_ms"] > 0
    assert line["level"] == "info"


@pytest.mark.parametrize(
    ("request_of", "status", "code"),
    [
        (lambda s: s.post("rubbish"), 422, "invalid_request"),
        (lambda s: s.post(nested([[float("nan")]])), 422, "non_finite_value"),
        (lambda s: s.post(b" " * 2000), 413, "body_too_large"),
        (lambda s: s.client.post(SHAPLEY, content="{}"), 415, "unsupported_media_type"),
        (lambda s: s.client.get("/nope"), 404, "not_found"),
        (lambda s: s.client.get(SHAPLEY), 405, "method_not_allowed"),
        (lambda s: s.client.get("/v1/info"), 200, None),
        (lambda s: s.client.get("/metrics"), 200, None),
    ],
)
def test_every_request_is_one_line(request_of, status, code, log):
    """Failures make one line as well, with their code."""
    on_service(request_of, max_body_bytes=1024)
    assert len(log.texts) == 1
    (line,) = log.requests
    assert set(line) >= ALWAYS
    assert (line["status"], line.get("code")) == (status, code)


@pytest.mark.parametrize("case", ["unauthorized", "draining"])
def test_a_refusal_is_one_line_with_its_code(case, log):
    """What the middleware refuses is told by code, as everything else."""

    async def ask(service):
        service.resources.draining = case == "draining"
        await service.post(nested())

    on_service(ask, api_keys=("k",) if case == "unauthorized" else ())
    (line,) = log.requests
    assert line["status"] in {401, 503}
    assert line.get("code") == case


def test_probes_are_quiet(log):
    """A probe that finds all well does not fill the log; one that does not is written."""

    async def ask(service):
        for path in ("/livez", "/readyz"):
            await service.client.get(path)
        quiet = len(log.texts)
        service.resources.draining = True
        await service.client.get("/readyz")
        return quiet

    assert on_service(ask) == 0
    assert [(line["route"], line["status"]) for line in log.requests] == [("/readyz", 503)]


def test_no_text_of_a_request_is_logged(log):
    """Ids, groups, texts, paths, queries and headers of callers are in no line."""
    candidate = {"reward": 1.0, "text": SENT, "id": SENT}
    columns = {"rewards": [[1.0]], "ids": [SENT], "groups": [SENT], "texts": [SENT], "candidate_ids": [SENT]}

    async def ask(service):
        await service.post({"sets": [{"id": SENT, "group": SENT, "candidates": [candidate]}]})
        await service.post({"columns": columns})
        await service.post({"rewards": [[1.0]], SENT: 1}, GROUP)
        await service.client.get(f"/{SENT}?{SENT}={SENT}", headers={SENT: SENT, "User-Agent": SENT})
        await service.client.get("/v1/info", headers={"X-Request-Id": f"{SENT} {SENT}"})

    on_service(ask)
    assert len(log.requests) == 5
    assert not any(SENT in text for text in log.texts)


def test_no_text_of_a_failure_is_logged_as_a_field(log):
    """A failure of the service names its type in the request's line, never its message."""
    gate, resources = gated()

    def broken(batch, options, rejected, deadline):
        if gate.calls:
            raise ValueError(SENT)
        return gate(batch, options, rejected, deadline)

    resources.score_sets = broken
    on_service(lambda service: service.post(nested()), resources)
    (line,) = log.requests
    assert line["failure"] == "ValueError"
    assert SENT not in json.dumps(line)


def test_a_line_is_json_whatever_is_logged():
    """Other loggers come out as one JSON object, too, newlines and objects included."""
    record = logging.LogRecord("uvicorn.error", logging.WARNING, __file__, 1, "two\nlines %s", (object(),), None)
    record.fields = {"path": logging}
    text = JsonLines().format(record)
    assert "\n" not in text
    assert orjson.loads(text)["level"] == "warning"
