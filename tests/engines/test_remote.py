import itertools
import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from creditd.engines.errors import (
    EngineFailedError,
    EngineOverloadedError,
    EngineStoppedError,
    ModelUnsuitableError,
)
from creditd.engines.model_spec import HeadChoice, ModelSpec, RemoteChoice
from creditd.engines.protocol import VariantTexts
from creditd.engines.remote import RemoteEngine
from engines.remotes import KEY, asked, one, scored
from engines.vllm_answers import MODEL, TEMPLATE_REFUSES
from engines.vllm_server import PATIENCE_S, VllmServer, plain

MESSAGES = [{"role": "user", "content": "why?"}]


@pytest.mark.parametrize("route", ["classify", "pooling"])
def test_texts_become_the_logits_of_the_server(server, engine_of, route):
    """A prompt and its completion are one text, and its reward is the logit that the server gives."""
    found = scored(engine_of(server, route=route), one(" because"), one(" I know not"))
    assert found.rewards.tolist() == [plain("why? because")[0], plain("why? I know not")[0]]
    assert (found.rewards.dtype, found.failures) == (np.float64, {})


def test_a_request_asks_for_raw_logits_of_whole_texts(server, engine_of):
    """The activation is asked off under both of its names, and no field cuts a text."""
    scored(engine_of(server, route="classify"), one(" because"))
    scored(engine_of(server, route="pooling"), one(" because"))
    common = {
        "model": MODEL, "input": ["why? because"], "use_activation": False, "activation": False,
        "add_special_tokens": True,
    }  # fmt: skip
    assert server.scored == [common, common | {"task": "classify", "encoding_format": "float"}]


def test_special_tokens_that_are_written_out_are_not_added_again(server, engine_of):
    """The server is told, for all texts of a request; some with and some without are a mistake of the caller."""
    engine, written = engine_of(server), replace(one("because</s>"), adds_special_tokens=False)
    assert scored(engine, written).rewards.tolist() == plain("why?because</s>")
    assert [body["add_special_tokens"] for body in server.scored] == [False]
    with pytest.raises(ValueError, match="got both"):
        engine.prepared([written, one("because")])


def test_chat_messages_go_with_the_completion_one_conversation_at_a_time(server, engine_of):
    """The server's template writes the assistant's last message, and nothing behind it."""
    found = scored(engine_of(server), one("because", MESSAGES), one("who asks?", MESSAGES), one(" plain"))
    expected = [plain(f"<user>why?<assistant>{text}")[0] for text in ("because", "who asks?")]
    assert found.rewards.tolist() == [*expected, plain("why? plain")[0]]
    sent = [body for body in server.scored if "messages" in body]
    assert sorted(body["messages"][-1]["content"] for body in sent) == ["because", "who asks?"]
    for body in sent:
        assert body["messages"][0] == MESSAGES[0]
        assert body["messages"][-1]["role"] == "assistant"
        flags = ("add_generation_prompt", "continue_final_message", "add_special_tokens")
        assert [body[name] for name in flags] == [False] * 3
        assert "input" not in body
        assert "chat_template" not in body


def test_a_registered_template_goes_with_the_messages_alone(server, engine_of):
    """The server is asked for the template of the registration, which it may refuse; strings need none."""
    scored(engine_of(server, chat_template="{{ messages }}"), one("because", MESSAGES), one("because"))
    assert [body.get("chat_template") for body in server.scored if "messages" in body] == ["{{ messages }}"]
    assert [body.get("chat_template") for body in server.scored if "input" in body] == [None]


def test_messages_for_a_server_without_a_template_are_refused_before_it_is_asked(server, engine_of):
    """What the registration says of the server holds."""
    engine = engine_of(server, takes_messages=False)
    with pytest.raises(ModelUnsuitableError, match="expected a prompt that is a string"):
        engine.prepared([one("because", MESSAGES)])


def test_a_conversation_that_the_template_refuses_fails_alone(server, engine_of):
    """The template's words are the caller's, and are not repeated."""
    server.script = [TEMPLATE_REFUSES]
    found = scored(engine_of(server, max_connections=1), one("a", MESSAGES), one("b", MESSAGES))
    assert np.isfinite(found.rewards).tolist() == [False, True]
    assert found.failures[0].code == "engine_failed"
    assert found.failures[0].detail == "the remote model refused it: HTTP 400 BadRequestError"


def test_equal_texts_are_asked_for_once(server, engine_of):
    """Coalitions that are one text cost one, and each has its score; texts of other prompts may be the same too."""
    units = ("a", "b", "a")
    coalitions = np.array(list(itertools.product([False, True], repeat=3)))
    engine = engine_of(server)
    prepared = engine.prepared([VariantTexts("why? ", units, coalitions), one("? aba", "why")])
    found = engine.submit(prepared).result(PATIENCE_S)
    texts = [f"why? {''.join(itertools.compress(units, row))}" for row in coalitions] + ["why? aba"]
    assert found.rewards.tolist() == [plain(text)[0] for text in texts]
    different = set(texts)
    assert sorted(text for body in server.scored for text in body["input"]) == sorted(different)
    assert (prepared.usage.evaluations, prepared.usage.tokens_computed) == (len(different), 0)
    assert found.usage.evaluations == len(different) < len(texts)
    assert found.usage.tokens_computed == sum(map(len, different))
    assert found.usage.tokens_naive == sum(map(len, texts))
    assert found.usage.engine_s > 0
    assert found.usage.queue_s >= 0


def test_many_texts_are_asked_for_in_parts_over_pooled_connections(server, engine_of):
    """No request has more texts than the setting, no more run at a time than connections, and connections are kept."""
    server.delay_s = 0.02
    engine = engine_of(server, texts_per_request=4, max_connections=3)
    works = [[one(f" {work}-{text}") for text in range(18)] for work in range(4)]
    for work, answer in zip(works, [asked(engine, *work) for work in works], strict=True):
        expected = [plain(f"why?{text.units[0]}")[0] for text in work]
        assert answer.result(PATIENCE_S).rewards.tolist() == expected
    assert max(len(body["input"]) for body in server.scored) == 4
    assert len(server.scored) == 4 * 5
    assert server.most_running <= 3
    assert server.connections <= 3


def test_a_small_request_does_not_wait_for_all_of_a_large_one(server, engine_of):
    """Requests take turns at the connections."""
    server.delay_s = 0.02
    engine = engine_of(server, texts_per_request=1, max_connections=2)
    large = asked(engine, *(one(f" {number}") for number in range(40)))
    small = asked(engine, one(" small"))
    small.result(PATIENCE_S)
    assert not large.done()
    assert np.isfinite(large.result(PATIENCE_S).rewards).all()


def test_the_key_goes_in_the_header_and_nowhere_else(engine_of):
    """A key is a bearer token; neither the engine's identity nor its registration says it."""
    with VllmServer(key=KEY) as server:
        engine = engine_of(server, key=KEY)
        assert engine.check() is None
        scored(engine, one("a"))
        assert {headers["authorization"] for _, headers, _ in server.requests} == {f"Bearer {KEY}"}
        assert KEY not in repr(engine.spec) + engine.identity + repr(engine.status())


@pytest.mark.parametrize(
    ("head", "reward"),
    [
        (HeadChoice(index=1), 3.0),
        (HeadChoice(margin=(1, 0)), 5.0),
        (HeadChoice(margin=(1, 0), activation="sigmoid"), 1 / (1 + math.exp(-5.0))),
        (HeadChoice(index=0, activation="log_sigmoid"), -math.log1p(math.exp(2.0))),
    ],
)
def test_the_head_is_chosen_here(engine_of, head, reward):
    """Index, margin and activation apply to the logits of the server."""
    with VllmServer(logits=lambda _: [-2.0, 3.0, 0.5]) as server:
        assert scored(engine_of(server, head=head), one("a")).rewards == pytest.approx([reward], rel=1e-12)


def test_identities_differ_in_whatever_decides_a_score(server, engine_of):
    """Another name, route, head or template is another model to the cache; a key or a number of connections is not."""
    base = engine_of(server).identity
    others = [
        engine_of(server, model="other"),
        engine_of(server, route="pooling"),
        engine_of(server, head=HeadChoice(index=0)),
        engine_of(server, chat_template="x"),
    ]
    assert len({base, *(other.identity for other in others)}) == 5
    assert engine_of(server, key=KEY, max_connections=1).identity == base


def test_a_text_that_json_cannot_carry_fails_alone(server, engine_of):
    """Half a surrogate pair is a failure of its text; the others are scored."""
    found = scored(engine_of(server), one("a"), one("\ud800"), one("é🙂"))
    assert found.rewards[[0, 2]].tolist() == [plain("why?a")[0], plain("why?é🙂")[0]]
    assert (math.isnan(found.rewards[1]), found.failures[1].code) == (True, "engine_failed")


def test_nothing_to_score_is_answered_at_once(server, engine_of):
    """No texts, or none that can be sent, cost no request."""
    engine = engine_of(server)
    assert scored(engine).rewards.shape == (0,)
    assert set(scored(engine, one("\ud800")).failures) == {0}
    assert server.requests == []


def test_more_than_the_limit_is_refused_at_once(server, engine_of):
    """Admission is by guessed tokens, a quarter of the characters; an idle engine takes whatever comes."""
    engine = engine_of(server, max_queued_tokens=100, max_connections=1)
    server.always = server.hang
    asked(engine, one("x" * 320))
    assert engine.status().queued_tokens == 81
    asked(engine, one("x" * 40))
    with pytest.raises(EngineOverloadedError, match="about 92 tokens wait") as refused:
        asked(engine, one("x" * 40))
    assert refused.value.retry_after_s >= 1
    large = engine_of(server, max_queued_tokens=10)
    asked(large, one("x" * 400))
    assert large.status().queued_tokens > 10


def test_the_status_says_what_waits_and_how_long_the_server_is_silent(server, engine_of):
    """Silence counts while there is work, from its beginning or the last answer."""
    engine = engine_of(server)
    scored(engine, one("a"))
    status = engine.status()
    assert (status.backend, status.alive, status.queued_tokens, status.n_batches) == ("remote", True, 0, 1)
    assert status.silent_s == 0
    server.always = server.hang
    waiting = asked(engine, one("b"))
    began = time.monotonic()
    while engine.status().silent_s < 0.05:
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.01)
    assert engine.status().queued_tokens > 0
    waiting.cancel()
    while engine.status().queued_tokens:
        assert time.monotonic() - began < PATIENCE_S
        time.sleep(0.01)


def test_cancelling_ends_the_calls(server, engine_of):
    """Who leaves takes the connection's place with them: the next request is answered though there is one place."""
    engine = engine_of(server, max_connections=1)
    server.script = [server.hang]
    waiting = asked(engine, one("a"))
    while not server.scored:
        time.sleep(0.01)
    assert waiting.cancel()
    assert scored(engine, one("b")).rewards.tolist() == plain("why?b")


def test_closing_fails_what_waits_and_finishes_what_runs(server, engine_of):
    """A request that the server has is answered; one that it has not is told that the engine is stopped."""
    engine = engine_of(server, max_connections=1)
    gate = threading.Event()

    def slow(handler):
        assert gate.wait(PATIENCE_S)
        handler.reply(*server.answer(handler.path, handler.headers, server.scored[0]))

    server.script = [slow]
    running = asked(engine, one("a"))
    while not server.scored:
        time.sleep(0.01)
    waiting = asked(engine, one("b"))
    closing = threading.Thread(target=engine.close, args=(PATIENCE_S,))
    closing.start()
    with pytest.raises(EngineStoppedError):
        waiting.result(PATIENCE_S)
    gate.set()
    assert running.result(PATIENCE_S).rewards.tolist() == plain("why?a")
    closing.join(PATIENCE_S)
    assert not engine.status().alive
    with pytest.raises(EngineStoppedError):
        asked(engine, one("c"))
    with pytest.raises(EngineStoppedError):
        engine.check()


def test_closing_does_not_wait_for_a_server_that_hangs(server, engine_of):
    """What is not answered in the time for closing fails, and the thread ends."""
    server.always = server.hang
    engine = engine_of(server)
    waiting = asked(engine, one("a"))
    while not server.scored:
        time.sleep(0.01)
    engine.close(0.05)
    with pytest.raises(EngineStoppedError):
        waiting.result(PATIENCE_S)
    assert not engine._thread.is_alive()
    engine.close(0.05)


def test_a_defect_here_is_an_error_of_the_request(server, engine_of, monkeypatch):
    """Whatever goes wrong while a request is asked for, it is answered, and the next one too."""
    engine = engine_of(server)

    async def broken(*_, **__):
        raise KeyError("SECRET")

    with monkeypatch.context() as patched:
        patched.setattr(engine._calls, "score", broken)
        with pytest.raises(EngineFailedError, match=r"could not be asked: KeyError$"):
            scored(engine, one("a"))
    assert scored(engine, one("a")).rewards.tolist() == plain("why?a")


def test_a_check_ends_when_the_engine_is_closed(server, engine_of):
    """Who checks while the engine is closed is told so."""
    server.always = server.hang
    engine = engine_of(server)
    closing = threading.Timer(0.1, engine.close, args=(0.0,))
    closing.start()
    with pytest.raises(EngineStoppedError):
        engine.check(PATIENCE_S)
    closing.join(PATIENCE_S)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_leaves_nobody_waiting(server, engine_of):
    """Whatever stops the loop, whoever waits is told so."""
    server.always = server.hang
    engine = engine_of(server)
    waiting = asked(engine, one("a"))
    engine._loop.call_soon_threadsafe(engine._ending.cancel)
    with pytest.raises(EngineStoppedError):
        waiting.result(PATIENCE_S)
    engine._thread.join(PATIENCE_S)
    with pytest.raises(EngineStoppedError):
        asked(engine, one("b"))


def test_what_is_no_remote_reward_model_is_refused():
    """A policy, or a model of a directory, is no remote reward model; a URL without HTTP is no URL."""
    remote = RemoteChoice("http://127.0.0.1:1")
    with pytest.raises(ModelUnsuitableError, match="expected a remote reward model"):
        RemoteEngine(ModelSpec("judge", remote=remote, kind="policy"))
    with pytest.raises(ModelUnsuitableError, match="is no url"):
        RemoteEngine(ModelSpec("judge", remote=RemoteChoice("http://judge:port")))
    for wrong in (
        {"url": "judge:8000"},
        {"url": "http://me:SECRET@judge:8000"},
        {"key": "SECRET\n"},
        {"key": "SÉCRET"},
        {"timeout_s": 0.0},
        {"max_connections": 0},
        {"texts_per_request": 0},
    ):
        with pytest.raises(ValueError, match="expected") as refused:
            RemoteChoice(**{"url": "http://judge:8000", **wrong})
        assert "SECRET" not in str(refused.value)


def test_a_remote_model_has_no_attention_and_no_tokens(server, engine_of):
    """What a server of scores does not tell is refused with a sentence, and the server is not asked."""
    engine = engine_of(server)
    with pytest.raises(ModelUnsuitableError, match="does not tell its model's attention"):
        engine.prepared_attention([one(" because")])
    with pytest.raises(ModelUnsuitableError, match="does not tell its model's attention"):
        engine.attention(engine.prepared([one(" because")]))
    with pytest.raises(ModelUnsuitableError, match="got token 103; the tokenizer of a model on another server"):
        engine.token_text(103)
    assert server.requests == []
