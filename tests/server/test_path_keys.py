"""Keys in addresses: for the routes of trainers that send no header, and nowhere in what the service writes down."""

import json
from urllib.parse import quote

import anyio
import pytest

from creditd.server.path_keys import PathKey
from creditd.wire.weights import SHARD_MEDIA_TYPE
from server.model_services import with_models
from server.reward_calls import CLASSIFY, GET_REWARD, OF_MODEL, REWARD_PATHS, body_for
from server.running import SHAPLEY, nested, on_service
from server.test_errors import problem_of

KEY, OTHER, STRANGE = "first-key", "second-key", "a/b+c%2F?d=é"
KEYS = (KEY, OTHER, STRANGE)


def with_key(key, path):
    """An address with a key."""
    return f"/with_key/{quote(key, safe='')}{path}"


def post(path, body, headers=None, **settings):
    """The response of a service with keys."""
    options = {"api_keys": KEYS, **settings}
    return on_service(lambda service: service.post(body, path, **(headers or {})), with_models(**options))


@pytest.mark.parametrize("path", REWARD_PATHS)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_in_the_address_opens_the_routes_of_trainers(path, key):
    """Each key does, whatever characters it is made of, once they are percent-encoded."""
    assert post(with_key(key, path), body_for(path, "sun")).status_code == 200


@pytest.mark.parametrize("path", REWARD_PATHS)
@pytest.mark.parametrize(
    "prefix", ["", "/with_key/wrong", "/with_key/first-ke", "/with_key/FIRST-KEY", "/with_key/%20"]
)
def test_without_a_valid_one_nothing_opens(path, prefix):
    """No key, or another one: 401 before the body is read."""
    problem_of(post(prefix + path, body_for(path, "sun")), "unauthorized")


@pytest.mark.parametrize(
    "path",
    [SHAPLEY, "/v1/info", "/metrics", "/openapi.json", "/", "/get_reward/", "//get_reward", "/livez",
     "/with_key/first-key/get_reward", "/v1/models/rm/weights", "/v1/models/rm/get_reward/x"],
)  # fmt: skip
def test_no_other_route_takes_a_key_from_its_address(path):
    """With a good key the address is still nowhere."""
    problem_of(post(with_key(KEY, path), nested()), "unauthorized")


def test_a_key_of_two_segments_is_none():
    """A slash in a key has to be encoded: what stands behind the first one is the address."""
    problem_of(post(f"/with_key/{STRANGE}/get_reward", body_for(GET_REWARD, "sun")), "unauthorized")


def test_the_key_of_the_address_counts():
    """Beside a header it is the one that is looked at."""
    body, path = body_for(GET_REWARD, "sun"), GET_REWARD
    header = {"Authorization": f"Bearer {KEY}"}
    assert post(with_key(OTHER, path), body, {"Authorization": "Bearer wrong"}).status_code == 200
    problem_of(post(with_key("wrong", path), body, header), "unauthorized")
    assert post(path, body, header).status_code == 200


def test_without_keys_any_will_do():
    """An open service answers as without one."""
    assert post(with_key("whatever", GET_REWARD), body_for(GET_REWARD, "sun"), api_keys=()).status_code == 200


def test_weights_cannot_be_pushed_to_such_an_address():
    """Not with an admin's key either."""
    headers = {"Content-Type": SHARD_MEDIA_TYPE}
    response = post(with_key("admin", "/v1/models/x/weights"), b"", headers, admin_keys=("admin",))
    problem_of(response, "unauthorized")


def test_a_key_is_written_down_nowhere(log):
    """Not in the log, the counters, the answers, whether it is right or wrong, or the address behind it."""
    right = "s3cret-key-of-a-trainer"

    async def ask(service):
        answers = [
            await service.post(body_for(GET_REWARD, text), with_key(key, path))
            for path in (GET_REWARD, OF_MODEL.format("rm"), OF_MODEL.format("zz"), CLASSIFY, SHAPLEY, "/nope")
            for key in (right, f"{right}-but-wrong")
            for text in ("sun", "curse")
        ]
        headers = {"Authorization": f"Bearer {right}"}
        answers.append(await service.client.get("/metrics", headers=headers))
        return answers

    answers = on_service(ask, with_models(api_keys=(right,)))
    assert {answer.status_code for answer in answers} >= {200, 401, 404, 422}
    written = [*log.texts, *(answer.text for answer in answers), *(json.dumps(dict(a.headers)) for a in answers)]
    assert not any("s3cret" in text for text in written)
    routes = {line["route"] for line in log.requests}
    assert routes == {GET_REWARD, OF_MODEL.format("{id}"), CLASSIFY, "/metrics", "unmatched"}


def test_the_key_becomes_a_header_and_leaves_the_address():
    """Whatever comes behind sees the address and the header of a caller that could send one."""
    seen = []

    async def ask(path, *headers):
        async def app(scope, *_):
            seen.append((scope["path"], scope["raw_path"], sorted(scope["headers"])))

        scope = {"type": "http", "path": path, "raw_path": path.encode(), "headers": [(b"host", b"h"), *headers]}
        await PathKey(app)(scope, None, None)

    anyio.run(ask, with_key(KEY, GET_REWARD), (b"authorization", b"Bearer another"))
    anyio.run(ask, GET_REWARD, (b"authorization", f"Bearer {KEY}".encode()))
    assert len(seen) == 2
    assert seen[0] == seen[1]
