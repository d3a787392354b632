"""A real policy whose weights are replaced over HTTP while it answers."""

import asyncio
import copy
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytest.importorskip("peft", reason="the lane `models` installs peft")
pytestmark = [
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # asked by PEFT
]

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from creditd.adapters.weights import push_policy  # noqa: E402
from creditd.client import (  # noqa: E402
    Client,
    WeightsRefusedError,
    WeightVersionMismatchError,
)
from creditd.wire.weights import SHARD_MEDIA_TYPE  # noqa: E402
from server.oar_calls import item_of, request_of  # noqa: E402
from server.running import OAR  # noqa: E402
from server.test_oar_models import AGREEMENT, COMPLETION, PROMPT, SHAPE, by_full_forwards, policy  # noqa: E402
from server.test_served_models import PATIENCE_S, served  # noqa: E402

N_REQUESTS, N_SWAPS, N_PINNED = 200, 20, 20
ITEMS = [
    item_of(COMPLETION, prompt_ids=PROMPT, answer=[5, 7]),
    item_of([44, 60, 71, 35], prompt_ids=PROMPT, answer=[3, 4]),
]
SETTINGS = '[[models]]\nid = "org/policy"\npath = "a"\nkind = "policy"\nmax_tokens = 64\nbatch_tokens = 32\n'
POLICY = "org/policy"
BODY = request_of(*ITEMS, model=POLICY, sensitivity={"type": "perturbation"}, deterministic=True)
SHARD_BYTES = 40_000


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service whose policy has the first of two sets of weights; both are models, saved under its root."""
    folder = tmp_path_factory.mktemp("models")
    sets = {name: policy(folder / name, seed) for seed, name in enumerate("ab")}
    with served(folder, SETTINGS) as url:
        yield url, sets


def numbers_of(document):
    """The sensitivities of an answer."""
    return [item["sensitivities"] for item in document["items"]]


def ask(url, **more):
    """The response to the request of these tests."""
    return httpx.post(f"{url}{OAR}", json={**BODY, **more}, timeout=PATIENCE_S)


def swaps_of(client):
    """How often the service has replaced weights."""
    (weights,) = client.info().weights
    return weights.swaps


def expected_of(model):
    """What a plain loop over whole texts says of the items."""
    return [
        by_full_forwards(model, completion=item["completion_ids"], answer=item["answer"]) + [None] * n_answer
        for item, n_answer in zip(ITEMS, (3, 1), strict=True)
    ]


def agree(found, expected):
    """Whether sensitivities are those, up to rounding."""
    largest = max(value for row in expected for value in row if value is not None)
    rows = [np.array(row, dtype=np.float64) for row in (*found, *expected)]
    half = len(found)
    return all(
        np.allclose(rows[place], rows[half + place], rtol=0, atol=AGREEMENT * largest, equal_nan=True)
        for place in range(half)
    )


class Flight:
    """Callers who ask all the time while weights are replaced again and again.

    Attributes:
        answers: Of those that take whatever weights there are.
        pinned: Of those that wait for the last version.
    """

    def __init__(self, url, push, versions):
        self.url, self.push, self.versions = url, push, versions
        self.answers, self.pinned = [], []
        self.done = asyncio.Event()

    async def ask(self, http):
        """Ask again until the last swap, so that as many requests are in flight all the time."""
        while not self.done.is_set():
            self.answers.append(await http.post(f"{self.url}{OAR}", json=BODY))

    async def wait(self, http):
        """Wait for the last version."""
        self.pinned.append(await http.post(f"{self.url}{OAR}", json={**BODY, "weight_version": self.versions[-1]}))

    async def swap(self):
        """Push one version after the other, each once somebody was answered since the one before."""
        with ThreadPoolExecutor(1) as thread:
            for version in self.versions:
                before = len(self.answers)
                await asyncio.get_running_loop().run_in_executor(thread, self.push, version)
                while len(self.answers) == before:  # noqa: ASYNC110 - answers come from other tasks
                    await asyncio.sleep(0.005)
        self.done.set()

    async def run(self):
        """All of them at once."""
        limits = httpx.Limits(max_connections=N_REQUESTS + N_PINNED)
        async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as http:
            callers = [self.ask(http) for _ in range(N_REQUESTS)] + [self.wait(http) for _ in range(N_PINNED)]
            await asyncio.gather(self.swap(), *callers)


def test_every_answer_is_that_of_one_set_of_weights(service):
    """200 requests in flight and 20 swaps: each answer is that of the weights whose version it names, to the last bit.

    Weights come in shards, and from a directory, in turn. A request is several batches of the engine, so a swap between
    two of them would be seen. Requests that are pinned to the last version wait for it.
    """
    url, sets = service
    versions = {f"run:{number}": "ab"[number % 2] for number in range(1, N_SWAPS + 1)}
    last, references = f"run:{N_SWAPS}", {}
    with Client(url, deadline_s=PATIENCE_S) as client:

        def push(version):
            if int(version.rpartition(":")[2]) % 3:
                push_policy(
                    client, POLICY, sets[versions[version]], weight_version=version, max_shard_bytes=SHARD_BYTES
                )
            else:
                client.load_weights(POLICY, versions[version], weight_version=version)

        for name in "ab":
            push_policy(client, POLICY, sets[name], weight_version=f"before:{name}")
            references[name] = numbers_of(ask(url, weight_version=f"before:{name}").json())
            assert agree(references[name], expected_of(sets[name]))
        assert not agree(references["a"], references["b"])
        before = swaps_of(client)
        client.announce_weights(POLICY, weight_version=last)
        flight = Flight(url, push, list(versions))
        asyncio.run(flight.run())
        assert swaps_of(client) - before == N_SWAPS
    versions["before:b"] = "b"
    assert len(flight.answers) >= N_REQUESTS
    assert len(flight.pinned) == N_PINNED
    for response in [*flight.answers, *flight.pinned]:
        assert response.status_code == 200, response.text
        document = response.json()
        assert numbers_of(document) == references[versions[document["weight_version"]]]
    assert len({response.json()["weight_version"] for response in flight.answers}) > N_SWAPS // 2
    assert {response.json()["weight_version"] for response in flight.pinned} == {last}


def test_an_adapter_that_is_pushed_is_measured_merged_or_not(service):
    """Sensitivities are those of the model with its adapter, either way; then the weights below it are as they were."""
    url, sets = service
    wrapped = get_peft_model(copy.deepcopy(sets["a"]), LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    expected = expected_of(wrapped)
    with Client(url, deadline_s=PATIENCE_S) as client:
        push_policy(client, POLICY, sets["a"], weight_version="below:1")
        plain = numbers_of(ask(url).json())
        assert not agree(plain, expected)
        for merged in (False, True):
            version = f"adapter:{merged}"
            report = push_policy(client, POLICY, wrapped, weight_version=version, merged=merged)
            found = ask(url, weight_version=version).json()
            assert report.is_adapter
            assert found["weight_version"] == version
            assert agree(numbers_of(found), expected)
        push_policy(client, POLICY, sets["a"], weight_version="below:2")
        assert numbers_of(ask(url).json()) == plain


def test_a_push_that_is_refused_leaves_the_policy_as_it_was(service):
    """Other shapes, numbers that are not finite, and other bytes under a name that was used change nothing."""
    url, sets = service
    foreign = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "hidden_size": 16}))
    damaged = copy.deepcopy(sets["b"])
    with torch.no_grad():
        damaged.lm_head.weight[3, 5] = float("nan")
    with Client(url, deadline_s=PATIENCE_S) as client:
        push_policy(client, POLICY, sets["a"], weight_version="good:1")
        before, swaps = ask(url).json(), swaps_of(client)
        with pytest.raises(WeightsRefusedError, match="of shape"):
            push_policy(client, POLICY, foreign, weight_version="bad:1", max_shard_bytes=SHARD_BYTES)
        with pytest.raises(WeightsRefusedError, match="not finite"):
            push_policy(client, POLICY, damaged, weight_version="bad:2", max_shard_bytes=SHARD_BYTES)
        with pytest.raises(WeightVersionMismatchError):
            push_policy(client, POLICY, sets["b"], weight_version="good:1")
        push_policy(client, POLICY, sets["a"], weight_version="good:1")
        after = ask(url, weight_version="good:1").json()
        assert swaps_of(client) == swaps
    assert numbers_of(after) == numbers_of(before)
    assert after["weight_version"] == before["weight_version"] == "good:1"


def test_a_large_shard_that_is_refused_is_told_over_a_real_connection(service):
    """A shard beyond the limit is refused before it is read, and its sender learns why instead of a broken pipe."""
    url, _ = service
    with Client(url, deadline_s=20.0) as client:
        limit = client.info().limits.shard_bytes
        assert limit == 1 << 30
    head = {"Content-Type": SHARD_MEDIA_TYPE, "Content-Length": str(limit + 1)}

    def endless():
        for _ in range(64):
            yield bytes(1 << 20)

    query = {"weight_version": "v", "shard": 0, "shards": 1, "checksum": "0" * 32}
    response = httpx.post(
        f"{url}/v1/models/{POLICY}/weights", params=query, content=endless(), headers=head, timeout=PATIENCE_S
    )
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")
