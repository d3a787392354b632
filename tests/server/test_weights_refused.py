"""Bodies of weights that are refused: who sends them, what they say, how large and how slow they are."""

import tracemalloc

import anyio
import pytest

from creditd.server.weights_answers import WRITE_BYTES
from creditd.wire.weights import SHARD_MEDIA_TYPE
from server.running import nested, on_service
from server.test_errors import problem_of
from server.test_keys import bearer
from server.test_weights import reached, spooled
from server.weight_calls import WEIGHTS, TakingPolicy, name, push, query_of, safetensors_of, send, shards_of, taking

KEYS = {"api_keys": ("user-key",), "admin_keys": ("admin-key",)}
ANNOUNCED = {"type": "announce", "weight_version": "v"}


async def unread():
    """A body that must not be read."""
    raise AssertionError("the body was read")
    yield b""


# Who may


@pytest.mark.parametrize("settings", [KEYS, {"api_keys": ("user-key",)}])
@pytest.mark.parametrize("kind", ["application/json", SHARD_MEDIA_TYPE])
def test_a_key_that_is_no_admin_key_is_forbidden(settings, kind, tmp_path):
    """A valid key is not enough, and without any admin key nobody may; the body is not read."""

    async def ask(service):
        return await service.client.post(
            WEIGHTS, content=unread(), headers={"Content-Type": kind, **bearer("user-key")}
        )

    document = problem_of(on_service(ask, taking(weights_spool=tmp_path, **settings)), "forbidden")
    assert "admin_keys" in document["detail"]


@pytest.mark.parametrize("headers", [{}, bearer("wrong"), {"X-Admin": "admin-key"}])
def test_without_a_valid_key_it_is_unauthorized(headers, tmp_path):
    """Who has no key at all is not told more."""

    async def ask(service):
        return await service.client.post(WEIGHTS, content=unread(), headers=headers)

    problem_of(on_service(ask, taking(weights_spool=tmp_path, **KEYS)), "unauthorized")


def test_an_admin_key_opens_everything(tmp_path):
    """It replaces weights, and is a key on every other route; with admin keys alone the others need one as well."""

    async def ask(service):
        weights = await service.client.post(WEIGHTS, json=ANNOUNCED, headers=bearer("admin-key"))
        credit = await service.post(nested(), **bearer("admin-key"))
        return weights.status_code, credit.status_code, (await service.post(nested())).status_code

    assert on_service(ask, taking(weights_spool=tmp_path, **KEYS)) == (200, 200, 401)
    assert on_service(ask, taking(weights_spool=tmp_path, admin_keys=("admin-key",))) == (200, 200, 401)


def test_a_key_that_is_both_is_an_admin_key(tmp_path):
    """The same key in both settings may do both."""

    async def ask(service):
        return await service.client.post(WEIGHTS, json=ANNOUNCED, headers=bearer("k"))

    assert on_service(ask, taking(weights_spool=tmp_path, api_keys=("k",), admin_keys=("k",))).status_code == 200


def test_without_any_key_everybody_may(tmp_path):
    """A service that is open is open."""
    assert on_service(lambda service: name(service, **ANNOUNCED), taking(weights_spool=tmp_path)).status_code == 200


# Whose weights


@pytest.mark.parametrize("model", ["nobody", "rm", "org", "", "org/policy/more", "org/policy/weights"])
def test_only_policies_take_weights(model, tmp_path):
    """An id that is no policy's is 404, and the others are named; the body is not read."""

    async def ask(service):
        headers = {"Content-Type": SHARD_MEDIA_TYPE}
        return await service.client.post(f"/v1/models/{model}/weights", content=unread(), headers=headers)

    document = problem_of(on_service(ask, taking(weights_spool=tmp_path)), "unknown_model")
    assert "org/policy" in document["detail"]


def test_another_method_is_refused(tmp_path):
    """The route takes POST."""
    response = on_service(lambda service: service.client.get(WEIGHTS), taking(weights_spool=tmp_path))
    problem_of(response, "method_not_allowed")
    assert response.headers["allow"] == "POST"


# What a shard says of itself

GOOD = query_of(b"", 0)


@pytest.mark.parametrize(
    ("query", "code", "pointer"),
    [
        ({}, "invalid_request", "checksum"),
        ({**GOOD, "shard": 3}, "invalid_request", ""),
        ({**GOOD, "shard": -1}, "invalid_request", "shard"),
        ({**GOOD, "shard": "x"}, "invalid_request", "shard"),
        ({**GOOD, "shard": "9" * 5000}, "invalid_request", "shard"),
        ({**GOOD, "shards": 0}, "invalid_request", "shards"),
        ({**GOOD, "shards": 10_001}, "invalid_request", "shards"),
        ({**GOOD, "checksum": "0" * 31}, "invalid_request", "checksum"),
        ({**GOOD, "checksum": "G" * 32}, "invalid_request", "checksum"),
        ({**GOOD, "weight_version": ""}, "invalid_request", "weight_version"),
        ({**GOOD, "weight_version": "v" * 257}, "invalid_request", "weight_version"),
        ({**GOOD, "adapter": "perhaps"}, "invalid_request", "adapter"),
        ({**GOOD, "merged": "true"}, "invalid_request", ""),
        ({**GOOD, "path": "x"}, "unknown_field", "path"),
        ([*GOOD.items(), ("shard", 1)], "invalid_request", "shard"),
    ],
)
def test_a_query_that_names_no_shard_is_refused_unread(query, code, pointer, tmp_path):
    """Each parameter is checked and named; the body is not read."""

    async def ask(service):
        headers = {"Content-Type": SHARD_MEDIA_TYPE}
        return await service.client.post(WEIGHTS, params=query, content=unread(), headers=headers)

    response = on_service(ask, taking(weights_spool=tmp_path))
    assert problem_of(response, code)["errors"][0]["pointer"] == pointer
    assert response.headers["connection"] == "close"


def test_shards_of_one_version_agree_on_their_number(tmp_path):
    """A shard that says another number of shards is refused; the upload goes on as it began."""

    async def ask(service):
        await send(service, shards_of()[0])
        return await send(service, shards_of()[1], 1, shards=4), await push(service)

    refused, answers = on_service(ask, taking(weights_spool=tmp_path))
    problem_of(refused, "weights_refused")
    assert answers[-1]["status"] == "live"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/octet-stream"])
def test_another_media_type_names_the_three(kind, tmp_path):
    """A body is a document in one of two formats, or a shard."""

    async def ask(service):
        return await service.client.post(WEIGHTS, content=unread(), headers={"Content-Type": kind})

    document = problem_of(on_service(ask, taking(weights_spool=tmp_path)), "unsupported_media_type")
    assert SHARD_MEDIA_TYPE in document["detail"]


def test_a_compressed_shard_is_refused(tmp_path):
    """No body expands in here."""

    async def ask(service):
        return await send(service, b"x", body=unread(), headers={"Content-Encoding": "gzip"})

    problem_of(on_service(ask, taking(weights_spool=tmp_path)), "unsupported_media_type")


# How large


def test_a_shard_that_says_it_is_too_large_is_refused_unread(tmp_path):
    """Content-Length alone is enough, also a length that no number holds."""
    for length in ("1025", "9" * 30):

        async def ask(service, length=length):
            return await send(service, b"x", body=unread(), headers={"Content-Length": length})

        response = on_service(ask, taking(weights_spool=tmp_path, max_shard_bytes=1024))
        assert "1024" in problem_of(response, "body_too_large")["detail"]


def test_a_stream_that_becomes_too_large_is_refused_and_forgotten(tmp_path):
    """Without Content-Length the body is counted while it comes, and reading stops at the limit."""
    sent = 0

    async def endless():
        nonlocal sent
        while True:
            sent += 512
            yield b" " * 512

    async def ask(service):
        return await send(service, b"x", body=endless()), spooled(tmp_path)

    response, left = on_service(ask, taking(weights_spool=tmp_path, max_shard_bytes=1024))
    problem_of(response, "body_too_large")
    assert (sent, left) == (3 * 512, [])


def test_limits_of_other_bodies_are_not_those_of_shards(tmp_path):
    """A shard may be larger than any document; a document about weights may not."""
    policy = TakingPolicy()

    async def ask(service):
        shard = safetensors_of(dict.fromkeys("abc", b"x" * 4096))
        big = await name(service, **ANNOUNCED, path="p" * 2000)
        return await send(service, shard, shards=1), big

    limits = {"max_body_bytes": 1024, "max_binary_body_bytes": 1024}
    taken, big = on_service(ask, taking(policy, weights_spool=tmp_path, **limits))
    assert taken.json()["status"] == "live"
    problem_of(big, "body_too_large")


def test_weights_that_are_too_large_together_are_refused(tmp_path):
    """Each shard is within its limit, all of them are not within theirs."""

    async def ask(service):
        found = [await send(service, shard, number) for number, shard in enumerate(shards_of(size=900))]
        assert service.resources.held_bytes == 0
        return found

    first, second, third = on_service(ask, taking(weights_spool=tmp_path, max_weight_bytes=2000))
    assert (first.status_code, second.status_code) == (200, 200)
    assert "2000" in problem_of(third, "weights_refused")["detail"]


def test_a_long_shard_is_never_held_whole(tmp_path):
    """Of a shard of 64 MiB about one MiB is in memory at a time, and counts as held."""
    size, most = 64 << 20, 0
    content = safetensors_of({"a": bytes(size)})

    async def ask(service):
        async def body():
            nonlocal most
            for start in range(0, len(content), 1 << 16):
                most = max(most, service.resources.held_bytes)
                yield content[start : start + (1 << 16)]

        tracemalloc.start()
        try:
            answer = await send(service, content, body=body())
            return answer, tracemalloc.get_traced_memory()[1], service.resources.held_bytes
        finally:
            tracemalloc.stop()

    answer, peak, held = on_service(ask, taking(weights_spool=tmp_path))
    assert (answer.json()["status"], answer.json()["n_bytes"]) == ("staged", len(content))
    assert 0 < most <= WRITE_BYTES + (1 << 16)
    assert peak < 8 * WRITE_BYTES
    assert held == 0


def test_what_is_held_of_all_bodies_bounds_shards_too(tmp_path):
    """A service whose memory is full of other bodies says so, and forgets the shard."""

    async def ask(service):
        service.resources.count_held(1024)
        response = await send(service, shards_of()[0])
        service.resources.count_held(-1024)
        return response, spooled(tmp_path), service.resources.held_bytes

    response, left, held = on_service(ask, taking(weights_spool=tmp_path, max_held_bytes=1024))
    problem_of(response, "overloaded")
    assert (left, held) == ([], 0)


# How slow, and who leaves


def test_a_body_that_stops_is_504_and_forgotten(tmp_path):
    """Nothing for longer than the body timeout ends the request, however much came before; nothing of it stays."""

    async def stopping():
        yield b"x" * 2 * WRITE_BYTES
        await anyio.sleep(60)

    async def ask(service):
        response = await send(service, b"x", body=stopping())
        return response, spooled(tmp_path), service.resources.in_flight, service.resources.held_bytes

    response, left, in_flight, held = on_service(ask, taking(weights_spool=tmp_path, body_timeout_s=0.05))
    assert "0.05 s" in problem_of(response, "deadline_exceeded")["detail"]
    assert (left, in_flight, held) == ([], 0, 0)
    assert response.headers["connection"] == "close"


def test_a_body_that_goes_on_is_not_too_slow(tmp_path):
    """What counts is the time since something came: a large shard over a slow line is taken."""
    content = shards_of()[0]

    async def trickling():
        for byte in content:
            await anyio.sleep(0.002)
            yield bytes([byte])

    async def ask(service):
        return await send(service, content, body=trickling())

    response = on_service(ask, taking(weights_spool=tmp_path, body_timeout_s=0.1))
    assert len(content) * 0.002 > 0.1
    assert response.json()["status"] == "staged"


def test_the_deadline_holds_while_the_body_comes(tmp_path):
    """However steadily it comes: the caller does not wait any more."""

    async def trickling():
        while True:
            await anyio.sleep(0.005)
            yield b"x"

    async def ask(service):
        return await send(service, b"x", body=trickling(), headers={"X-Request-Timeout-Ms": "80"})

    document = problem_of(on_service(ask, taking(weights_spool=tmp_path)), "deadline_exceeded")
    assert "deadline of the request" in document["detail"]


def test_a_caller_who_leaves_in_the_middle_leaves_nothing(log, tmp_path):
    """Half a shard is forgotten once its sender is gone; the log says 499."""

    async def ask(service):
        messages = [
            {"type": "http.request", "body": b"x" * 2 * WRITE_BYTES, "more_body": True},
            {"type": "http.disconnect"},
        ]
        written = []

        async def receive():
            message = messages.pop(0) if messages else {"type": "http.disconnect"}
            if message["type"] == "http.disconnect":
                await reached(lambda: spooled(tmp_path))
                written.extend(spooled(tmp_path))
            return message

        async def drop(_):
            """Nobody reads an answer."""

        query = "&".join(f"{key}={value}" for key, value in query_of(b"x", 0).items())
        scope = {
            "type": "http", "method": "POST", "path": WEIGHTS, "raw_path": WEIGHTS.encode(), "scheme": "http",
            "query_string": query.encode(), "headers": [(b"content-type", SHARD_MEDIA_TYPE.encode())],
            "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"},
        }  # fmt: skip
        await service.app(scope, receive, drop)
        return written, spooled(tmp_path), service.resources.in_flight, service.resources.held_bytes

    written, left, in_flight, held = on_service(ask, taking(weights_spool=tmp_path))
    assert written
    assert (left, in_flight, held) == ([], 0, 0)
    assert [line["status"] for line in log.requests] == [499]


def test_shards_that_nobody_completes_are_dropped(tmp_path):
    """After the time that shards wait, the service removes them, without another request."""

    async def ask(service):
        await send(service, shards_of()[0])
        before = len(spooled(tmp_path))
        await reached(lambda: not spooled(tmp_path))
        return before

    assert on_service(ask, taking(weights_spool=tmp_path, weights_upload_ttl_s=0.2)) == 1
