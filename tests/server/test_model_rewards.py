import threading

import anyio
import pytest

from server.model_services import REWARDS, WORDS, columns_of, fake, sets_of, with_models
from server.running import PATIENCE_S, nested, on_service, post, rows_of

ROWS = [("sun", "rain", "wind"), ("snow", "fog", "fog"), ("wind", "snow")]
KNOWN = [[WORDS[text] for text in row] for row in ROWS]


def asked(body, resources=None, **headers):
    """The answer of a service with a model."""
    return on_service(lambda service: service.post(body, **headers), resources or with_models())


@pytest.mark.parametrize("form", [sets_of, columns_of])
@pytest.mark.parametrize("utility", [{"type": "max"}, {"type": "top_m", "m": 2}, {"type": "mean", "empty": 0.0}])
def test_rewards_from_a_model_are_rewards(form, utility):
    """Every closed form applies to what the model says, as if the caller had sent it."""
    found = asked(form(*ROWS, utility=utility, **REWARDS)).json()
    expected = asked(nested(KNOWN, utility=utility)).json()
    credits_ = rows_of(found["columns"]["credits"]) if "columns" in found else [one["credits"] for one in found["sets"]]
    assert credits_ == [one["credits"] for one in expected["sets"]]
    assert found["model"] == "rm"
    assert (found["usage"]["evaluations"], found["usage"]["from_cache"]) == (5, 0)
    assert found["usage"]["tokens_naive"] == sum(len("weather?") + len(text) for row in ROWS for text in row)


def test_chat_messages_are_prompts():
    """A prompt may be a conversation."""
    prompts = []

    def heard(prompt, text):
        prompts.append(prompt)
        return float(len(text))

    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "weather?"}]
    assert asked(sets_of(("a", "bb"), prompt=messages, **REWARDS), with_models(fake(score=heard))).status_code == 200
    assert prompts == [messages, messages]


def test_a_text_that_is_too_long_fails_its_set_alone():
    """What does not fit the model is an error of its item, and is never cut."""
    resources = with_models(fake(max_tokens=20))
    body = sets_of(("sun", "rain"), ("sun", "x" * 13), **REWARDS)
    found = asked(body, resources).json()["sets"]
    assert [one["status"] for one in found] == ["ok", "error"]
    assert found[1]["error"]["code"] == "context_exceeded"
    assert found[1]["error"]["pointer"] == "/sets/1/candidates/1/text"
    assert "got 21 tokens; expected at most 20" in found[1]["error"]["detail"]
    assert "group_incomplete" in found[0]["flags"]
    columns = asked(columns_of(("sun", "rain"), ("sun", "x" * 13), **REWARDS), with_models(fake(max_tokens=20))).json()
    assert [(one["row"], one["pointer"]) for one in columns["errors"]] == [(1, "/columns/texts/3")]


def test_a_score_that_is_no_number_fails_its_set_alone():
    """NaN from a model is an error of the set, never a number."""
    found = asked(sets_of(("sun", "rain"), ("wind", "curse"), **REWARDS)).json()["sets"]
    assert [one["status"] for one in found] == ["ok", "error"]
    assert found[1]["error"]["code"] == "non_finite_utility"


def test_candidates_without_a_text_are_not_scored():
    """A null text is a candidate that was not scored: it is no player, and the model is not asked about it."""
    engine = fake()
    found = asked(sets_of(("sun", None, "rain"), **REWARDS), with_models(engine)).json()
    assert found["sets"][0]["flags"] == ["single_response", "candidate_unscored"]
    assert found["sets"][0]["credits"][1] is None
    assert found["usage"]["evaluations"] == 2
    nothing = asked(sets_of((None, None), ("sun",), **REWARDS)).json()["sets"][0]
    assert "no_candidates" in nothing["flags"]


def test_surplus_candidates_are_not_asked_about():
    """What truncation takes out of the game costs nothing."""
    body = sets_of(("sun", "rain", "curse"), malformed={"candidates": 2}, **REWARDS)
    found = asked(body).json()
    assert found["sets"][0]["status"] == "ok"
    assert found["usage"]["evaluations"] == 2
    assert "candidate_truncated" in found["sets"][0]["flags"]


def test_copies_collapse_as_with_rewards():
    """Copies of one text have one reward."""
    body = sets_of(("sun", "sun", "rain"), malformed={"duplicates": "collapse"}, **REWARDS)
    found = asked(body).json()["sets"][0]
    assert found["credits"][1] == 0.0
    assert "duplicates_collapsed" in found["flags"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        (lambda body: body["sets"][0].pop("prompt"), "/sets/0/prompt"),
        (lambda body: body["sets"][0]["candidates"][1].pop("text"), "/sets/0/candidates/1/text"),
        (lambda body: body["sets"][0]["candidates"][0].update(reward=1.0), "/sets/0/candidates/0/reward"),
        (lambda body: body.update(rewards=None), "/sets/0/prompt"),
        (lambda body: body["sets"][0].update(prompt=[]), "/sets/0/prompt"),
        (lambda body: body["sets"][0].update(prompt=7), "/sets/0/prompt"),
        (lambda body: body["sets"][0].update(prompt=[{"role": "user"}]), "/sets/0/prompt/0/content"),
        (lambda body: body.update(utility={"type": "table"}), "/rewards"),
        (lambda body: body.update(rewards={"type": "model", "model": "no such"}), "/rewards/model"),
        (lambda body: body.update(rewards={"type": "model"}), "/rewards/model"),
        (lambda body: body.update(rewards={"type": "model", "model": "rm", "url": "http://x"}), "/rewards/url"),
    ],
)
def test_what_is_missing_or_of_no_use_is_said_where(change, pointer):
    """Each has a code and a pointer."""
    body = sets_of(("sun", "rain"), **REWARDS)
    change(body)
    problem = asked(body).json()
    assert problem["errors"][0]["pointer"] == pointer, problem


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        (lambda columns: columns.pop("prompts"), "/columns/prompts"),
        (lambda columns: columns.pop("texts"), "/columns/texts"),
        (lambda columns: columns["texts"].pop(), "/columns/row_splits"),
        (lambda columns: columns["prompts"].pop(), "/columns/prompts"),
        (lambda columns: columns.update(rewards=[[1.0, 2.0]]), "/columns/rewards"),
    ],
)
def test_columns_say_where_as_well(change, pointer):
    """Each has a code and a pointer."""
    body = columns_of(("sun", "rain"), **REWARDS)
    change(body["columns"])
    problem = asked(body).json()
    assert problem["errors"][0]["pointer"] == pointer, problem


def test_an_unknown_model_names_those_that_there_are():
    """404, with what could be asked; not one word of it is a path or a URL."""
    response = asked(sets_of(("sun",), rewards={"type": "model", "model": "/etc/passwd"}))
    problem = response.json()
    assert (response.status_code, problem["code"], problem["retryable"]) == (404, "unknown_model", False)
    assert problem["detail"] == "/rewards/model: there is no such reward model; this service has: rm"


def test_a_service_without_models_says_so():
    """404 as well, and where models come from."""
    response = post(sets_of(("sun",), **REWARDS))
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")
    assert "this service has no reward model; its operator registers them" in response.json()["detail"]


def test_a_dry_run_says_the_price_and_runs_nothing():
    """Evaluations and tokens are counted before the model is asked; it is not."""
    engine = fake()
    found = asked(sets_of(*ROWS, dry_run=True, **REWARDS), with_models(engine)).json()
    assert found["usage"]["evaluations"] == 5
    assert found["usage"]["tokens_computed"] > 0
    assert "sets" not in found
    assert engine.batches == []


def test_a_request_of_too_many_characters_is_refused_before_it_is_tokenised():
    """The limit counts the prompt with each text, and is said with what was asked."""
    resources = with_models(max_model_characters=30)
    problem = asked(sets_of(("sun", "rain", "wind"), **REWARDS), resources).json()
    assert problem["code"] == "budget_exceeded"
    assert "the model would read 35 characters" in problem["detail"]


def test_an_overloaded_model_says_when_to_come_back():
    """503 with Retry-After, by the tokens that wait."""
    gate = threading.Event()

    def slow(_, text):
        assert gate.wait(PATIENCE_S)
        return float(len(text))

    async def ask(service):
        async def first():
            await service.post(sets_of(("a" * 40,), **REWARDS))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            engine = service.resources.engines.scorer("rm")
            with anyio.fail_after(PATIENCE_S):
                while not engine.status().queued_tokens:  # noqa: ASYNC110 - the engine has no event for it
                    await anyio.sleep(0.001)
            refused = await service.post(sets_of(("a" * 40,), **REWARDS))
            gate.set()
        return refused

    response = on_service(ask, with_models(fake(score=slow, max_queued_tokens=64), cache_bytes=0))
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert 1 <= int(response.headers["Retry-After"]) <= 30
    assert "48 tokens wait for this model; expected at most 64" in response.json()["detail"]


def test_a_model_that_fails_is_an_error_and_never_a_number():
    """502 for a score that raises, without its words."""

    def broken(*_):
        raise ValueError("a secret")

    response = asked(sets_of(("sun",), **REWARDS), with_models(fake(score=broken)))
    assert (response.status_code, response.json()["code"]) == (502, "engine_failed")
    assert "a secret" not in response.text
    assert response.json()["detail"] == "model rm: the model failed: ValueError"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_killed_engine_leaves_nobody_waiting():
    """Requests that wait and requests that come are 502, and the process asks to be restarted."""
    engine, begun = fake(score=lambda *_: (_ for _ in ()).throw(SystemExit)), []

    async def ask(service):
        begun.append(await service.client.get("/livez"))
        answers = [await service.post(sets_of(("sun",), **REWARDS)) for _ in range(2)]
        return answers, await service.client.get("/livez"), await service.client.get("/v1/models")

    answers, lives, models = on_service(ask, with_models(engine))
    assert [one.status_code for one in answers] == [502, 502]
    assert [one.json()["code"] for one in answers] == ["engine_failed"] * 2
    assert (begun[0].status_code, lives.status_code, lives.text) == (200, 503, "stalled: rm\n")
    assert models.json()["models"][0]["alive"] is False


def test_a_wedged_engine_leaves_nobody_waiting():
    """A model that never answers costs the caller its deadline; `/livez` is quick meanwhile, and fails in the end."""
    gate = threading.Event()
    engine = fake(score=lambda *_: float(gate.wait(PATIENCE_S)))

    async def ask(service):
        response = await service.post(sets_of(("sun",), **REWARDS), **{"X-Request-Timeout-Ms": "200"})
        with anyio.fail_after(PATIENCE_S):
            while (lives := await service.client.get("/livez")).status_code == 200:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.01)
        gate.set()
        return response, lives

    response, lives = on_service(ask, with_models(engine, engine_stall_s=0.5))
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
    assert lives.text == "stalled: rm\n"


def test_work_whose_caller_has_left_is_dropped():
    """A request whose deadline passes before the model begins is never run."""
    gate, heard = threading.Event(), []

    def slow(_, text):
        heard.append(text)
        assert gate.wait(PATIENCE_S)
        return 0.0

    async def ask(service):
        engine = service.resources.engines.scorer("rm")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.post, sets_of(("first",), **REWARDS))
            with anyio.fail_after(PATIENCE_S):
                while not heard:  # noqa: ASYNC110 - the model has no event for it
                    await anyio.sleep(0.001)
            late = await service.post(sets_of(("second",), **REWARDS), **{"X-Request-Timeout-Ms": "100"})
            gate.set()
        with anyio.fail_after(PATIENCE_S):
            while engine.status().queued_tokens:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.001)
        return late

    assert on_service(ask, with_models(fake(score=slow, batch_tokens=1))).status_code == 504
    assert heard == ["first"]


def test_many_small_requests_are_nearly_as_fast_as_one_large():
    """64 callers of one set reach 70 % of the throughput of one request of 64 sets, by the cost of the batches.

    A batch costs 2 ms and a token 1 µs. The time of the model is counted, not measured, and batches form while others
    run.
    """
    row = ("x" * 1000,) * 2
    engine = fake(score=lambda _, text: float(len(text)), per_batch_s=0.002, per_token_s=1e-6, batch_tokens=1 << 20)

    async def ask(service):
        async with anyio.create_task_group() as tasks:
            for _ in range(64):
                tasks.start_soon(service.post, sets_of(row, **REWARDS))

    on_service(ask, with_models(engine, compute_threads=2, cache_bytes=0))
    tokens_s = 64 * 2 * 1008 * 1e-6
    assert sum(engine.batches) == 128
    assert (0.002 + tokens_s) / (0.002 * len(engine.batches) + tokens_s) >= 0.7


def test_livez_is_quick_while_a_model_is_saturated():
    """A model at work holds neither the event loop nor other requests up."""
    gate = threading.Event()
    engine = fake(score=lambda *_: float(gate.wait(PATIENCE_S)))

    async def ask(service):
        async with anyio.create_task_group() as tasks:
            for _ in range(32):
                tasks.start_soon(service.post, sets_of(("sun",), **REWARDS))
            await service.in_flight(32)
            with anyio.fail_after(PATIENCE_S / 10):
                for _ in range(20):
                    assert (await service.client.get("/livez")).status_code == 200
                assert (await service.post(nested())).status_code == 200
            gate.set()

    on_service(ask, with_models(engine, compute_threads=1))


def test_arithmetic_does_not_wait_for_tokenizers():
    """Texts that take long to read hold no thread of the arithmetic."""
    gate, engine = threading.Event(), fake()
    prepared = engine.prepared

    def slow(texts, **options):
        assert gate.wait(PATIENCE_S)
        return prepared(texts, **options)

    engine.prepared = slow

    async def ask(service):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(service.post, sets_of(("sun",), **REWARDS))
            await service.in_flight(8)
            with anyio.fail_after(PATIENCE_S / 10):
                assert (await service.post(nested())).status_code == 200
            gate.set()

    on_service(ask, with_models(engine, compute_threads=1, max_inline_candidates=0))


def test_models_are_named_with_what_they_are():
    """`/v1/models` says what is loaded, its memory and its queue; `/v1/info` names it; `/metrics` counts it."""

    async def ask(service):
        await service.post(sets_of(*ROWS, **REWARDS))
        return [(await service.client.get(path)) for path in ("/v1/models", "/v1/info", "/metrics")]

    models, info, metrics = on_service(ask, with_models(fake(revision="r1", max_tokens=100)))
    (one,) = models.json()["models"]
    assert (one["id"], one["kind"], one["backend"], one["revision"]) == ("rm", "reward", "fake", "r1")
    assert (one["max_tokens"], one["queued_tokens"], one["alive"], one["weight_version"]) == (100, 0, True, None)
    assert (one["fingerprint"], one["cached"]) == (None, True)
    assert info.json()["models"] == ["rm"]
    assert info.json()["utilities"][-1] == "model"
    assert 'creditd_evaluations_total{model="rm"} 5.0' in metrics.text
    assert 'creditd_engine_queued_tokens{model="rm"} 0.0' in metrics.text


def test_an_engine_error_of_submitting_is_an_error():
    """A closed engine is 502 as well."""
    engine = fake()
    engine.close(PATIENCE_S)
    assert asked(sets_of(("sun",), **REWARDS), with_models(engine)).status_code == 502
