"""The servers, the load and the profile of the benchmarks are what the page says they are."""

import asyncio

import pytest

from benchmarks.http_costs import cases_of, server
from benchmarks.http_load import END_OF_HEAD, Load, back_to_back, get, one_answer, paced, post
from benchmarks.http_profile import room_of, shares

STALL_S, RATE, SECONDS = 0.5, 50.0, 0.6


@pytest.fixture(scope="module")
def ports():
    """Every server of the comparison."""
    commands = {name: ("benchmarks.http_servers", name) for name in ("stock", "plain", "echo")}
    commands["creditd"] = ("creditd.cli", "serve", "--host", "127.0.0.1", "--port", "0")
    managers = {name: server(None, *command) for name, command in commands.items()}
    found = {name: manager.__enter__()[0] for name, manager in managers.items()}
    yield found
    for manager in managers.values():
        manager.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [False, True])
def test_all_servers_answer_alike(ports, tokens):
    """Stock, plain and creditd in three forms give the same bits, and the echo as many bytes as creditd."""
    cases, sizes = cases_of(16, tokens=tokens, ports=ports)
    assert len(cases) == len(sizes) == 7
    for case in cases:
        if case.name.startswith("echo"):
            assert len(asyncio.run(one_answer(case.asks[0]))) == sizes[case.name]["answer_bytes"]


@pytest.mark.slow
def test_a_refusal_is_counted_and_not_taken_for_an_answer(ports):
    """A load says how many requests were refused; a single answer that is none is an error."""
    wrong = post(ports["creditd"], "/v1/credit/shapley", b"{}", "application/json")
    load = asyncio.run(back_to_back([wrong, get(ports["creditd"], "/livez")], 10, 2))
    assert (len(load.latencies_s), load.refused) == (10, 5)
    with pytest.raises(RuntimeError, match="the answer is 422"):
        asyncio.run(one_answer(wrong))


class Stalling(asyncio.Protocol):
    """Answers every request, the first one late."""

    stalled = False

    def connection_made(self, transport):
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data):
        """One request."""
        assert data.endswith(END_OF_HEAD)
        wait_s, self.stalled = (0.0 if self.stalled else STALL_S), True
        asyncio.get_running_loop().call_later(
            wait_s, self.transport.write, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        )


async def stalled():
    """Latencies of an even load on a server that stalls once."""
    listening = await asyncio.get_running_loop().create_server(Stalling, "127.0.0.1", 0)
    async with listening:
        return await paced([get(listening.sockets[0].getsockname()[1], "/")], RATE, SECONDS, 1)


def test_requests_that_a_stall_holds_back_are_late():
    """A stall delays every request that was due while it lasted, and not the one alone that met with it."""
    load = asyncio.run(stalled())
    due_in_the_stall = int(STALL_S * RATE)
    assert len(load.latencies_s) == round(RATE * SECONDS)
    assert sum(seconds > STALL_S / 4 for seconds in load.latencies_s) > due_in_the_stall / 2


def test_quantiles_are_of_all_requests():
    """The 50th and the 99th of a hundred latencies."""
    load = Load(seconds=2.0, latencies_s=[number / 1e3 for number in range(1, 102)])
    assert load.per_second == pytest.approx(50.5)
    assert load.quantile_ms(0.5) == pytest.approx(51.0, abs=0.2)
    assert load.quantile_ms(0.99) == pytest.approx(100.0, abs=0.2)


@pytest.mark.parametrize(
    ("innermost", "room"),
    [
        ("set_credit (/x/creditd/credit/set_credit.py:1)", "the arithmetic"),
        ("any (/x/numpy/_core/_methods.py:60)", "the arithmetic"),
        ("encode (/x/creditd/wire/codec.py:60);packb (/x/msgpack/__init__.py:36)", "an answer to bytes"),
        ("decode (/x/creditd/wire/codec.py:78)", "bytes to a checked request"),
        ("flat (/x/creditd/wire/arrays.py:9)", "a request to arrays"),
        ("app (/x/starlette/routing.py:9)", "FastAPI and Starlette"),
        ("send (/x/uvicorn/protocols/http/httptools_impl.py:9)", "uvicorn, uvloop and the socket"),
        ("run (/x/asyncio/runners.py:118)", "uvicorn, uvloop and the socket"),
        ("wait (/x/threading.py:327)", None),
    ],
)
def test_a_sample_belongs_to_the_room_of_its_innermost_frame(innermost, room):
    """Frames of libraries count for the room that called them; threads that wait count for none."""
    outer = "run_asgi (/x/uvicorn/a.py:1);score (/x/creditd/scoring/candidate_credit.py:1)"
    assert room_of(f"{outer};{innermost}") == room


def test_shares_leave_out_what_waits():
    """Shares of what is not waiting sum to 1; no sample at all is an error."""
    raw = "a (/x/creditd/credit/a.py:1) 3\nb (/x/starlette/b.py:1) 1\nc (/x/threading.py:1) 100\n"
    assert shares(raw) == {"the arithmetic": 0.75, "FastAPI and Starlette": 0.25}
    with pytest.raises(ValueError, match="no sample"):
        shares("c (/x/threading.py:1) 100\n")
