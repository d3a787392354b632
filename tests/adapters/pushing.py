"""Small policies that are pushed, and a service that keeps what comes: used by tests, and by two processes at once."""

import copy
import json
from urllib.parse import parse_qs, urlsplit

import httpx
import torch
from safetensors import safe_open
from safetensors.torch import load
from transformers import Qwen2Config, Qwen2ForCausalLM

from creditd.client import Client

SHAPES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def policy(seed=0, *, tied=True):
    """A policy with random weights."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**SHAPES, tie_word_embeddings=tied))


def with_adapter(model, rank=2):
    """The same with an adapter by PEFT, of numbers that are not those of its beginning."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=3, target_modules={"q_proj", "down_proj"}, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    return wrapped


def tensors_in(model):
    """What `state_dict` has, copied; of tied tensors the first name alone."""
    found, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach().clone()
    return found


class Kept:
    """A service that keeps shards; it refuses one, or loses all before one, where it is told.

    Attributes:
        shards: Bytes by their place.
        queries: Of each shard that came.
    """

    def __init__(self, refuses=None, loses=None):
        self.refuses, self.loses = refuses, loses
        self.shards, self.queries, self.announced = {}, [], []

    def __call__(self, request):
        """Answer one request."""
        head = {
            "request_id": request.headers["x-request-id"],
            "service": {"version": "9.9", "methods": 1},
            "model": "policy",
            "weight_version": "v",
            "n_bytes": 0,
            "n_tensors": 0,
            "seconds": {"receive": 0.0, "verify": 0.0, "swap": 0.25},
            "cast_from": None,
            "missing_shards": [],
        }
        if request.headers["content-type"] == "application/json":
            self.announced.append(json.loads(request.content)["weight_version"])
            return httpx.Response(200, json={**head, "status": "announced"})
        query = {name: values[0] for name, values in parse_qs(urlsplit(str(request.url)).query).items()}
        place = int(query["shard"])
        if place == self.refuses:
            problem = {"code": "weights_refused", "detail": "of the test's own making", "retryable": False}
            return httpx.Response(422, json=problem)
        if place == self.loses:
            self.shards.clear()
        self.shards[place] = request.content
        self.queries.append(query)
        missing = [shard for shard in range(int(query["shards"])) if shard not in self.shards]
        tensors = len(self.tensors()) if not missing else 0
        state = {"status": "staged" if missing else "live", "missing_shards": missing, "n_tensors": tensors}
        return httpx.Response(200, json={**head, **state})

    def client(self):
        """A client whose requests come here."""
        return Client("http://credit.test", transport=httpx.MockTransport(self), deadline_s=1.0)

    def tensors(self):
        """All tensors that came; none twice."""
        found = {}
        for place in sorted(self.shards):
            part = load(self.shards[place])
            assert not set(part) & set(found)
            found |= part
        return found

    def config(self, folder):
        """The configuration of an adapter in the first shard."""
        path = folder / "shard.safetensors"
        path.write_bytes(self.shards[0])
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["adapter_config"])


def agree(found, expected):
    """Whether the same names have the same numbers, to the last bit."""
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


def same(model):
    """A model with the same weights in memory of its own."""
    return copy.deepcopy(model)
