import httpx
import pytest

from server.reward_calls import REWARD_PATHS
from server.running import COMPOSE, GROUP, OAR, SCAR, SCAR_SOLVE, SHAPLEY, get, nested, on_service, post
from server.test_errors import problem_of

KEYS = ("first-key", "second-key")
GUARDED = (
    "/v1/info",
    "/metrics",
    "/openapi.json",
    "/nope",
    "http://service//",
    "/index.html",
    "/livez/x",
    "http://service//livez",
    "/LIVEZ",
    "/v1/livez",
)


def bearer(key):
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", GUARDED)
def test_without_a_key_nothing_but_probes_and_the_page_answers(path):
    """With keys configured every path but the probes and the page is 401, the unknown ones too."""
    response = get(path, api_keys=KEYS)
    problem_of(response, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", [SHAPLEY, GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE, *REWARD_PATHS])
def test_posts_need_a_key(path):
    """Credit needs a key; the body of a caller without one is not read."""

    async def body():
        raise AssertionError("the body was read")
        yield b""

    response = on_service(lambda service: service.client.post(path, content=body()), api_keys=KEYS)
    problem_of(response, "unauthorized")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/"])
def test_probes_and_the_page_need_no_key(path):
    """Probes answer anybody, and so does the page, which has to be there before a key can be typed into it."""
    assert get(path, api_keys=KEYS).status_code == 200


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_each_key_opens(key, scheme):
    """Every configured key is good, and the scheme's case does not matter."""
    assert post(nested(), headers={"Authorization": f"{scheme} {key}"}, api_keys=KEYS).status_code == 200
    assert get("/metrics", headers={"Authorization": f"{scheme} {key}"}, api_keys=KEYS).status_code == 200


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "first-key", "Basic first-key", "Bearer first-ke", "Bearer first-keyy",
     "Bearer FIRST-KEY", "Bearer first-key,second-key", "Bearerfirst-key"],
)  # fmt: skip
def test_anything_else_is_refused_without_an_echo(value, log):
    """A wrong key is refused; neither the response nor the log repeats it."""
    response = get("/v1/info", headers={"Authorization": value}, api_keys=KEYS)
    problem_of(response, "unauthorized")
    assert "first-ke" not in response.text
    assert not any("first-ke" in line for line in log.texts)


@pytest.mark.parametrize("header", ["X-Api-Key", "Cookie", "X-Forwarded-User", "X-Original-Url"])
def test_no_other_header_opens(header):
    """A key counts in Authorization only."""
    problem_of(get("/v1/info", headers={header: "first-key"}, api_keys=KEYS), "unauthorized")


def test_a_key_in_the_address_does_not_open():
    """A key in the query is no key: addresses end in logs."""
    problem_of(get("/v1/info?key=first-key", api_keys=KEYS), "unauthorized")


def test_the_first_of_two_headers_counts():
    """Two Authorization headers are not two guesses."""
    headers = httpx.Headers([("Authorization", "Bearer wrong"), ("Authorization", "Bearer first-key")])
    problem_of(get("/v1/info", headers=headers, api_keys=KEYS), "unauthorized")


def test_without_keys_everybody_may():
    """No key configured: the service is open."""
    assert post(nested()).status_code == 200
    assert get("/v1/info", headers=bearer("whatever")).status_code == 200


def test_a_request_with_a_wrong_key_is_not_counted_in_flight():
    """A refused caller takes no place."""

    async def ask(service):
        await service.post(nested())
        return service.resources.in_flight, service.resources.idle.is_set()

    assert on_service(ask, api_keys=KEYS) == (0, True)
