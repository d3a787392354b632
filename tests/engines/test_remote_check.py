import socket
from types import SimpleNamespace

import pytest

from creditd.engines.errors import ModelUnsuitableError
from engines.remotes import KEY
from engines.vllm_answers import BUSY, ENGINE_DEAD, MAX_MODEL_LEN, MODEL, NO_ROUTE, models
from engines.vllm_server import PATIENCE_S, VllmServer

SECRET = "SECRET"  # noqa: S105 - a word that no message may repeat


def nobody():
    """Where nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def test_a_check_says_what_is_wrong_at_boot(engine_of):
    """A wrong name, key, route or head is an error that says what was got and what is expected."""
    with VllmServer(key=KEY) as server:
        assert engine_of(server, key=KEY).check() is None
        assert engine_of(server, key=KEY).check(PATIENCE_S) is None
        for wrong, said in (
            ({"model": "other"}, f"got '{MODEL}'; expected 'other'"),
            ({"key": "another"}, "HTTP 401; expected remote.key"),
        ):
            with pytest.raises(ModelUnsuitableError, match=said):
                engine_of(server, **{"key": KEY, **wrong}).check()
        server.always = NO_ROUTE
        with pytest.raises(ModelUnsuitableError, match=r"expected remote\.route 'classify'"):
            engine_of(server, key=KEY).check()
    with VllmServer(logits=lambda _: [1.0, 2.0]) as server, pytest.raises(ModelUnsuitableError, match=r"head\.index"):
        engine_of(server).check()


def test_a_check_learns_how_long_texts_may_be(server, engine_of):
    """The longest sequence is what `/v1/models` says; without a name the first model is meant."""
    engine = engine_of(server, model="")
    assert engine.status().max_tokens is None
    assert engine.check() is None
    assert engine.status().max_tokens == MAX_MODEL_LEN
    assert "model" not in server.scored[0]


@pytest.mark.parametrize("answer", [models(), {"data": [{"id": 3}]}, {"data": "SECRET"}, "SECRET"])
def test_a_check_of_what_is_no_vllm_is_an_error(server, engine_of, answer, monkeypatch):
    """Something else that listens there is said at boot."""
    monkeypatch.setattr(server, "answer", lambda *_: (200, answer))
    with pytest.raises(ModelUnsuitableError) as failed:
        engine_of(server).check()
    assert SECRET not in str(failed.value)


def test_a_check_of_a_server_that_is_not_there_is_a_sentence(server, engine_of):
    """Services start in any order: who does not answer yet is no reason not to start."""
    assert "cannot be reached" in engine_of(SimpleNamespace(url=nobody())).check()
    server.always = server.hang
    assert "did not answer in 0.2 s" in engine_of(server).check(0.2)
    server.always = BUSY
    assert "HTTP 503" in engine_of(server).check()
    server.always = ENGINE_DEAD
    assert "HTTP 500" in engine_of(server).check()


def test_a_check_of_a_server_whose_engine_is_dead_is_a_sentence(server, engine_of, monkeypatch):
    """`/health` says 503 when the engine is dead."""
    monkeypatch.setattr(server, "answer", lambda *_: (503, ""))
    assert "is not well: HTTP 503 of /health" in engine_of(server).check()
