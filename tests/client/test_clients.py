import asyncio
import inspect
import subprocess
import sys

import httpx
import numpy as np
import pytest

import creditd.client
from creditd.client import AsyncClient, Client, NotReadyError, ResponseError, exceptions
from creditd.wire import codec

SETS = [[0.9, 0.5], [0.1, 0.2]]
FORBIDDEN = {"torch", "fastapi", "starlette", "redis", "transformers", "uvicorn", "pydantic_settings", "orjson"}


def test_the_client_is_light_to_import() -> None:
    """In a fresh interpreter, importing the client loads no framework and nothing of the service but the arithmetic."""
    program = "import sys, creditd.client; print('\\n'.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    modules = set(found.stdout.split())
    assert not modules & FORBIDDEN
    assert {name for name in modules if name.startswith("creditd.") and name.count(".") == 1} == {
        "creditd.client",
        "creditd.credit",
        "creditd.wire",
    }


def test_the_public_list_is_sorted_and_complete() -> None:
    """Every public name is there, and there is a version."""
    assert creditd.client.__all__ == sorted(creditd.client.__all__)
    assert all(hasattr(creditd.client, name) for name in creditd.client.__all__)
    assert isinstance(creditd.client.__version__, str)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = creditd.client.nothing


@pytest.mark.parametrize("method", ["shapley", "group", "repeat", "info", "ready", "wait_until_ready"])
def test_both_clients_have_the_same_methods(method) -> None:
    """Parameters, result and documentation are one and the same; only the awaiting differs."""
    sync, awaiting = getattr(Client, method), getattr(AsyncClient, method)
    assert inspect.signature(sync) == inspect.signature(awaiting)
    assert "Steps" not in str(inspect.signature(sync))
    assert sync.__doc__ == awaiting.__doc__
    assert inspect.iscoroutinefunction(awaiting)
    assert not inspect.iscoroutinefunction(sync)


def test_a_closed_client_stays_closed(runner, script) -> None:
    """Every use after close raises, also in local mode; closing twice is fine."""
    for client in (runner.client(script()), runner.client(url="local:")):
        runner.close(client)
        runner.close(client)
        for method, arguments in (("shapley", [SETS]), ("group", [SETS]), ("info", []), ("ready", [])):
            with pytest.raises(RuntimeError, match="closed"):
                runner.call(client, method, *arguments)


def test_a_block_closes_its_client(script) -> None:
    """`with` and `async with` give the client and close it, and cannot be entered again."""
    with Client("http://credit.test", transport=httpx.MockTransport(script())) as client:
        assert client.shapley(SETS).ok.all()
    with pytest.raises(RuntimeError, match="closed"), client:
        pass

    async def block() -> AsyncClient:
        async with AsyncClient("http://credit.test", transport=httpx.MockTransport(script())) as client:
            assert (await client.shapley(SETS)).ok.all()
        return client

    async def again(client: AsyncClient) -> None:
        async with client:
            pass

    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(again(asyncio.run(block())))


def test_a_borrowed_http_client_is_used_and_left_open(script) -> None:
    """Who opened it closes it."""
    with httpx.Client(transport=httpx.MockTransport(script())) as borrowed:
        with Client("http://credit.test", http_client=borrowed) as client:
            assert client.shapley(SETS).ok.all()
        assert not borrowed.is_closed
        with pytest.raises(ValueError, match="one of them"):
            Client("http://credit.test", http_client=borrowed, transport=httpx.MockTransport(script()))
    with pytest.raises(ValueError, match="one of them"):
        AsyncClient("http://a.test", http_client=httpx.AsyncClient(), transport=httpx.MockTransport(script()))


def test_address_and_key_come_from_the_environment(runner, script, monkeypatch) -> None:
    """CREDITD_URL and CREDITD_API_KEY are taken when nothing is given; a key's trailing newline is not part of it."""
    monkeypatch.setenv("CREDITD_URL", "http://elsewhere.test:1/")
    monkeypatch.setenv("CREDITD_API_KEY", "secret\n")
    service = script()
    runner.call(runner.client(service, url=None), "shapley", SETS)
    assert str(service.seen[0].url) == "http://elsewhere.test:1/v1/credit/shapley"
    assert service.seen[0].headers["authorization"] == "Bearer secret"
    runner.call(runner.client(service, url="http://here.test/prefix", api_key="other"), "shapley", SETS)
    assert str(service.seen[1].url) == "http://here.test/prefix/v1/credit/shapley"
    assert service.seen[1].headers["authorization"] == "Bearer other"
    monkeypatch.delenv("CREDITD_URL")
    monkeypatch.delenv("CREDITD_API_KEY")
    client = runner.client(service, url=None)
    assert client.base_url == "http://127.0.0.1:8400"
    runner.call(client, "shapley", SETS)
    assert "authorization" not in service.seen[2].headers


@pytest.mark.parametrize("url", ["credit:8400", "ftp://credit", "http://", "http://credit:port", "localhost"])
def test_an_address_that_cannot_work_is_refused_at_once(url, runner) -> None:
    """The mistake is named where it is made, not in the first request."""
    with pytest.raises(ValueError, match=r"expected http://|[Pp]ort"):
        runner.client(url=url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8400", "http://localhost:8400"])
def test_no_proxy_stands_before_this_machine(url, monkeypatch) -> None:
    """A cluster's HTTP_PROXY would catch requests to a sidecar otherwise."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    with Client(url) as client:
        assert not client._http.trust_env
    with Client("http://credit.test") as client:
        assert client._http.trust_env


def test_ready_asks_once(runner, clock, script) -> None:
    """True, or False while nobody listens or the service says so; without retries."""
    service = script([httpx.ConnectError("refused"), httpx.Response(503, text="warming"), httpx.Response(200)])
    client = runner.client(service)
    assert [runner.call(client, "ready") for _ in range(3)] == [False, False, True]
    assert [request.url.path for request in service.seen] == ["/readyz"] * 3
    assert clock.pauses == []


def test_waiting_ends_when_the_service_is_ready(runner, clock, script) -> None:
    """A service that does not listen yet, then warms up, is waited for."""
    service = script([*[httpx.ConnectError("refused")] * 3, *[httpx.Response(503, text="warming\n")] * 2])
    assert runner.call(runner.client(service), "wait_until_ready") is None
    assert len(service.seen) == 6
    assert clock.pauses == [0.5] * 5


def test_waiting_ends_when_time_is_up(runner, clock, script) -> None:
    """The error says what the service said last, and no more time passes than was given."""
    service, start = script([httpx.Response(503, text="warming\n")] * 1000), clock.now
    with pytest.raises(NotReadyError, match="not ready within 3 s; last: 503 warming") as caught:
        runner.call(runner.client(service), "wait_until_ready", timeout_s=3)
    assert caught.value.waited_s == clock.now - start <= 3
    with pytest.raises(ValueError, match="timeout_s"):
        runner.call(runner.client(service), "wait_until_ready", timeout_s=0)
    silent = script([httpx.ConnectError("")] * 1000)
    with pytest.raises(NotReadyError, match="last: ConnectError"):
        runner.call(runner.client(silent), "wait_until_ready", timeout_s=1)


@pytest.mark.parametrize("method", ["ready", "wait_until_ready"])
def test_what_will_never_be_ready_is_not_waited_for(method, runner, clock, script) -> None:
    """Another service at this address answers 404, and that is said at once."""
    with pytest.raises(exceptions.NotFoundError):
        runner.call(runner.client(script([httpx.Response(404)])), method)
    assert clock.pauses == []


def test_local_mode_is_always_ready(runner) -> None:
    """There is nothing to wait for, and info tells the same choices as the service."""
    client = runner.client(url="local:")
    assert runner.call(client, "ready") is True
    assert runner.call(client, "wait_until_ready") is None
    info = runner.call(client, "info")
    assert "max" in info.utilities
    assert info.limits.candidates == 256


def test_info_is_read_by_a_client_that_is_older_than_the_service(runner) -> None:
    """Fields that this client does not know are passed over, also within others."""
    client = runner.client(url="local:")
    known = runner.call(client, "info")
    document = known.model_dump()
    document |= {"new": 1}
    document["limits"] |= {"new": 2}
    newer = runner.client(lambda _: httpx.Response(200, json=document))
    assert runner.call(newer, "info") == known


@pytest.mark.parametrize("wrong", ["with space", "", "x" * 65, "line\nbreak", "ünicode"])
def test_a_request_id_has_to_survive_a_header_and_a_log(wrong, runner, script) -> None:
    """An identity that the service would replace is refused here."""
    with pytest.raises(ValueError, match="request_id"):
        runner.call(runner.client(script()), "shapley", SETS, request_id=wrong)


def test_on_item_error_is_one_of_two(runner, script) -> None:
    """A typing error does not silently mean raise."""
    for method in ("shapley", "group"):
        with pytest.raises(ValueError, match="expected one of raise, return"):
            runner.call(runner.client(script()), method, SETS, on_item_error="ignore")


@pytest.mark.parametrize(
    ("options", "sent", "accepted"),
    [
        ({}, codec.MEDIA_TYPE, f"{codec.MEDIA_TYPE}, application/json;q=0.5"),
        ({"wire_format": "binary"}, codec.MEDIA_TYPE, f"{codec.MEDIA_TYPE}, application/json;q=0.5"),
        ({"wire_format": "json"}, "application/json", "application/json"),
    ],
)
def test_the_binary_format_is_the_default(options, sent, accepted, runner, script) -> None:
    """Both ways, for every POST; JSON by an argument."""
    service = script()
    client = runner.client(service, **options)
    runner.call(client, "shapley", [[1.0]])
    runner.call(client, "group", [[1.0]])
    assert [request.headers["content-type"] for request in service.seen] == [sent] * 2
    assert [request.headers["accept"] for request in service.seen] == [accepted] * 2


def test_a_format_is_one_of_two(runner) -> None:
    """A format that nobody speaks is refused when the client is made."""
    with pytest.raises(ValueError, match="got wire_format 'pickle'; expected one of binary, json"):
        runner.client(wire_format="pickle")


@pytest.mark.parametrize("content", [b"", b"\xc1", b"{}", b"\x80", b"\x91\x01", b"\x81\xa7columns\x01"])
def test_a_binary_answer_that_is_none_is_not_in_the_schema(content, runner, script) -> None:
    """Bytes of another shape are the same error as text of another shape."""
    answer = httpx.Response(200, headers={"content-type": codec.MEDIA_TYPE}, content=content)
    for method in ("shapley", "group"):
        with pytest.raises(ResponseError, match="not in the schema"):
            runner.call(runner.client(script([answer])), method, [[1.0]])


def test_threads_may_share_a_client(script) -> None:
    """Calls do not disturb each other."""
    from concurrent.futures import ThreadPoolExecutor

    with Client("http://credit.test", transport=httpx.MockTransport(script())) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda reward: client.shapley([[float(reward)]]), range(64)))
    assert [result.credits[0][0] for result in results] == list(map(float, range(64)))
    assert len({result.request_id for result in results}) == 64


def test_an_answer_that_dribbles_in_does_not_outlast_the_deadline(clock) -> None:
    """The deadline covers the body of the answer, chunk by chunk."""

    class Dribble(httpx.SyncByteStream):
        def __iter__(self):
            while True:
                clock.now += 4.0
                yield b" "

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Dribble()))
    client = Client("http://credit.test", transport=transport, deadline_s=10, _timing=clock.timing)
    with pytest.raises(exceptions.DeadlineExceededError):
        client.shapley(SETS)
    assert clock.now <= 1000 + 12


def test_an_async_call_is_cut_off_at_its_deadline() -> None:
    """An answer that never comes is given up in time, whatever the transport does."""

    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async def call() -> None:
        async with AsyncClient("http://credit.test", transport=httpx.MockTransport(never), deadline_s=0.05) as client:
            await client.shapley(SETS)

    with pytest.raises(exceptions.DeadlineExceededError):
        asyncio.run(call())


def test_many_async_calls_run_at_once(script) -> None:
    """One client, one loop, concurrent calls with answers of their own."""

    async def calls() -> list[float]:
        async with AsyncClient("http://credit.test", transport=httpx.MockTransport(script())) as client:
            results = await asyncio.gather(*[client.shapley(np.full((1, 2), float(n))) for n in range(16)])
            return [float(result.utility_grand[0]) for result in results]

    assert asyncio.run(calls()) == list(map(float, range(16)))
