"""`/get_reward` asked by OpenRLHF's own client, against a service that runs.

The client waits a second after each attempt, which it can be told nowhere; here it waits a hundredth of one.
"""

import asyncio
import importlib
import json
from types import SimpleNamespace

import httpx
import pytest

from conventions.groups import OF_A_LIBRARY
from reward_service import CURSE, MAX_TOKENS, MODEL, SERVICE_PYTHON, interpreter, reward_service, shorten_waits, worth

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")
pytestmark = [
    *OF_A_LIBRARY,
    pytest.mark.skipif(interpreter() is None, reason=f"{SERVICE_PYTHON} names no interpreter that can run the service"),
]

KEY = "a-key/of the service"
ATTEMPTS = 5
"""Of OpenRLHF's client."""
N = 48
"""Samples at a time."""
PROMPT = "<user>why?<assistant>"


@pytest.fixture(scope="module")
def executor():
    """The class whose methods OpenRLHF's vLLM actors call."""
    return importlib.import_module("openrlhf.utils.agent").SingleTurnAgentExecutor


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch, executor):
    """The waits of its client, and no others, are shorter."""
    shorten_waits(monkeypatch, importlib.import_module(executor.__module__))


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service without keys."""
    with reward_service(tmp_path_factory.mktemp("open")) as url:
        yield url


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service with a key, and the folder of its log."""
    folder = tmp_path_factory.mktemp("guarded")
    with reward_service(folder, api_keys=[KEY]) as url:
        yield url, folder / "service.log"


def fetched(executor, url, queries, prompts=None, labels=None):
    """What the client makes of some queries: one document for each address that it asked."""
    client = executor(url)
    given = (queries, prompts or [""] * len(queries), labels or [""] * len(queries))
    return asyncio.run(client._fetch_rewards_via_http(*given))


class Characters:
    """A tokenizer whose tokens are characters."""

    def __call__(self, text, **_):
        """The tokens of one text, as a tensor."""
        return {"input_ids": importlib.import_module("torch").tensor([list(map(ord, text))])}

    def decode(self, tokens, **_):
        """The text of tokens."""
        return "".join(map(chr, tokens))


class Policy:
    """An engine whose answer is known."""

    def __init__(self, answer):
        self.answer = answer

    async def generate(self, *_, **__):
        """The answer, as vLLM gives it."""
        output = SimpleNamespace(token_ids=list(map(ord, self.answer)), finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def executed(executor, url, answer):
    """A sample as `execute` hands it on."""
    sampling = SimpleNamespace(max_tokens=64, logprobs=None)
    return asyncio.run(executor(url).execute(PROMPT, "label", sampling, 4096, Characters(), Policy(answer)))


@pytest.mark.parametrize("n_queries", [1, 2, 7])
def test_one_finite_number_per_query(executor, service, n_queries):
    """The client is given what it reads, one entry for each query, none of them a list."""
    queries = [f"<user>q{number}<assistant>an answer</s>" for number in range(n_queries)]
    prompts = [f"<user>q{number}<assistant>" for number in range(n_queries)]
    (found,) = fetched(executor, f"{service}/get_reward", queries, prompts)
    expected = list(map(worth, queries))
    assert found == {"rewards": expected, "scores": expected, "extra_logs": {}}


def test_no_query_is_no_call_and_an_empty_call_is_answered(executor, service):
    """This version asks nothing of nothing; versions up to 0.11.0 sent empty lists."""
    assert fetched(executor, f"{service}/get_reward", []) == []
    answer = httpx.post(f"{service}/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert answer.json() == {"rewards": [], "scores": [], "extra_logs": {}}


def test_many_addresses_take_turns(executor, service):
    """A list of addresses, here of both forms, is asked in turn."""
    urls = [f"{service}/get_reward", f"{service}/v1/models/{MODEL}/get_reward"]
    queries = ["one", "two", "three"]
    found = fetched(executor, urls, queries)
    assert [reward for document in found for reward in document["rewards"]] == list(map(worth, queries))


def test_samples_at_a_time_share_batches(executor, service):
    """As many calls as there are samples, all at once, and fewer batches of the model."""
    before = httpx.get(f"{service}/v1/models").json()["models"][0]["batches"]
    client = executor(f"{service}/get_reward")
    queries = [f"sample {number}" for number in range(N)]

    async def all_of_them():
        return await asyncio.gather(*(client._fetch_rewards_via_http([query], ["sample"], [""]) for query in queries))

    found = asyncio.run(all_of_them())
    assert [document["rewards"] for (document,) in found] == [[worth(query)] for query in queries]
    batches = httpx.get(f"{service}/v1/models").json()["models"][0]["batches"] - before
    assert batches <= N // 2


def test_a_key_in_the_address(executor, guarded):
    """The client sends no header; the address lets it in, and its key is in no line of the log."""
    url, log = guarded
    address = f"{url}/with_key/{KEY.replace('/', '%2F').replace(' ', '%20')}/get_reward"
    (found,) = fetched(executor, address, ["one"])
    assert found["rewards"] == [worth("one")]
    with pytest.raises(RuntimeError, match=f"{ATTEMPTS} times"):
        fetched(executor, f"{url}/get_reward", ["one"])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    asked = [line for line in lines if line.get("route") == "/get_reward"]
    assert [line["status"] for line in asked] == [200, *[401] * ATTEMPTS]
    assert "a-key" not in log.read_text()


@pytest.mark.parametrize("text", [f"a {CURSE}", "x" * (MAX_TOKENS + 1)])
def test_a_sample_without_a_reward_is_asked_about_five_times_and_then_given_up(executor, service, text):
    """What their client makes of an error: five attempts, whatever the status, then an exception and no number."""
    with pytest.raises(RuntimeError, match=f"{ATTEMPTS} times"):
        fetched(executor, f"{service}/get_reward", [text])


def test_a_service_that_is_gone(executor, tmp_path):
    """Killed in between: an error as well, and never a number."""
    with reward_service(tmp_path) as url:
        assert fetched(executor, f"{url}/get_reward", ["one"])[0]["rewards"] == [worth("one")]
    with pytest.raises(RuntimeError, match=f"{ATTEMPTS} times"):
        fetched(executor, f"{url}/get_reward", ["one"])


def test_an_overload_passes(executor, tmp_path):
    """A service that takes one request at a time refuses the others with 503, which this client repeats, too."""
    with reward_service(tmp_path, max_requests_in_flight=1) as url:
        client = executor(f"{url}/get_reward")

        async def two_of_them():
            queries = ("one", "two")
            return await asyncio.gather(*(client._fetch_rewards_via_http([query], [""], [""]) for query in queries))

        found = asyncio.run(two_of_them())
    assert [document["rewards"] for (document,) in found] == [[worth("one")], [worth("two")]]


def test_a_whole_sample(executor, service):
    """`execute` puts the number where the trainer reads it: what is scored is prompt and answer, special tokens too."""
    sample = executed(executor, f"{service}/get_reward", "because</s>")
    assert sample["reward"] == sample["scores"] == [worth(f"{PROMPT}because</s>")]
    assert sample["extra_logs"] == {}


def test_a_whole_sample_without_a_reward(executor, service):
    """`execute` swallows the failure: the sample has None, which is what README's warning is about."""
    sample = executed(executor, f"{service}/get_reward", CURSE)
    assert sample["reward"] is None
    assert sample["scores"] is None
