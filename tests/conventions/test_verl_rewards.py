"""`/classify` asked by verl's own reward loop, against a service that runs.

verl asks one sample at a time and waits 1, 2, 4 … seconds between attempts; here it waits a hundredth of that.
"""

import asyncio
import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from conventions.groups import OF_A_LIBRARY
from reward_service import CURSE, MODEL, SERVICE_PYTHON, interpreter, reward_service, shorten_waits, worth

pytest.importorskip("verl", reason="the lane `trainer` installs verl into an environment of its own")
pytest.importorskip("aiohttp", reason="verl's reward loop needs it")
pytestmark = [
    *OF_A_LIBRARY,
    pytest.mark.skipif(interpreter() is None, reason=f"{SERVICE_PYTHON} names no interpreter that can run the service"),
]

import torch  # noqa: E402

KEY = "a-key"
BOS, EOS = "<s>", "</s>"
N = 24
"""Samples at a time."""
QUESTION = "why?"


class Characters:
    """The policy's tokenizer: a character is a token, and there is one for the end."""

    eos_token = EOS

    def decode(self, ids):
        """The text of tokens, that of the end included."""
        return "".join(EOS if token == 0 else chr(token) for token in ids.tolist())


class Template:
    """The reward model's tokenizer, as far as verl asks it."""

    bos_token = BOS

    def apply_chat_template(self, chat, **_):
        """The text of a conversation, with the token for its beginning."""
        return BOS + "".join(f"<{message['role']}>{message['content']}" for message in chat)


@pytest.fixture(scope="module")
def loop():
    """The module of verl's reward loop."""
    return importlib.import_module("verl.experimental.reward_loop.reward_loop")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch, loop):
    """The waits of its client, and no others, are shorter."""
    shorten_waits(monkeypatch, loop)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The address of a service as verl takes it: without a scheme."""
    with reward_service(tmp_path_factory.mktemp("open")) as url:
        yield url.removeprefix("http://")


def worker(loop, address, model=MODEL):
    """A worker of the reward loop with a model for rewards, and without the models of a run."""
    made = loop.RewardLoopWorker.__new__(loop.RewardLoopWorker)
    rollout = SimpleNamespace(name="vllm")
    reward_model = SimpleNamespace(enable=True, model_path=model, rollout=rollout)
    custom = SimpleNamespace(path=None)
    made.config = SimpleNamespace(reward=SimpleNamespace(reward_model=reward_model, custom_reward_function=custom))
    made.reward_router_address = address
    made.input_tokenizer, made.reward_model_tokenizer = Characters(), Template()
    return made


def samples(*answers):
    """A batch as the worker takes it: prompts of one question, answers that end."""
    data = importlib.import_module("verl").DataProto
    rows = [[*map(ord, answer), 0] for answer in answers]
    longest = max(map(len, rows))
    responses = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, row in enumerate(rows):
        responses[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    prompts = np.empty(len(rows), dtype=object)
    prompts[:] = [[{"role": "user", "content": QUESTION}] for _ in rows]
    return data.from_dict({"responses": responses, "attention_mask": mask}, non_tensors={"raw_prompt": prompts})


def rewards(loop, address, *answers, model=MODEL):
    """What verl makes of the answers of a service."""
    made = worker(loop, address, model)
    found = asyncio.run(made.compute_score_batch(samples(*answers)))
    return [row["reward_score"] for row in found]


def read(answer):
    """What the reward model reads: verl takes the token for the beginning away, because servers add it."""
    return f"<user>{QUESTION}<assistant>{answer}"


def test_verl_reads_the_reward_of_each_sample(loop, service):
    """Numbers, in the order of the batch, of the texts that verl renders."""
    answers = [f"because {number}" for number in range(N)]
    assert rewards(loop, service, *answers) == [worth(read(answer)) for answer in answers]


def test_a_sample_without_a_reward_is_an_error_at_once(loop, service):
    """A 4xx is not repeated: the run stops, and no number stands in."""
    with pytest.raises(Exception, match="422"):
        rewards(loop, service, CURSE)


def test_a_model_that_is_not_there_is_an_error_at_once(loop, service):
    """Verl names the model by its path; a service calls it so, or says 404."""
    with pytest.raises(Exception, match="404"):
        rewards(loop, service, "because", model="another/path")


def test_an_overload_is_repeated(loop, tmp_path):
    """503 is repeated, up to sixteen times, until there is room."""
    with reward_service(tmp_path, max_requests_in_flight=1) as url:
        found = rewards(loop, url.removeprefix("http://"), "one", "two", "three")
    assert found == [worth(read(answer)) for answer in ("one", "two", "three")]


def test_a_key_in_the_address(loop, tmp_path):
    """Verl sends no header; the address of its router may carry a key."""
    with reward_service(tmp_path, api_keys=[KEY]) as url:
        address = url.removeprefix("http://")
        assert rewards(loop, f"{address}/with_key/{KEY}", "because") == [worth(read("because"))]
        with pytest.raises(Exception, match="401"):
            rewards(loop, address, "because")
    assert KEY not in (tmp_path / "service.log").read_text()
