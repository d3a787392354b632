"""Small policies whose weights are replaced while they answer, with logits as their scores."""

import copy

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from creditd.engines.batching import Batcher
from creditd.engines.live_weights import LiveWeights
from creditd.engines.policy_protocol import WeightPin
from creditd.engines.weight_files import staged_from_path
from creditd.engines.weight_versions import WeightVersions

PATIENCE_S = 60.0
TOKENS = torch.arange(3, 15)[None]
LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


def policy(seed=0, *, tied=False, dtype=torch.float32, kind="llama"):
    """A model with random weights, far from its initialisation."""
    torch.manual_seed(seed)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=tied))
    else:
        model = GPT2LMHeadModel(GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval().to(dtype)


def logits_of(model):
    """Its logits, as float64."""
    with torch.inference_mode():
        return model(TOKENS).logits.double().flatten().numpy()


class Logits:
    """A scorer that answers every work with the logits of its model."""

    def __init__(self, model):
        self.model = model

    def n_tokens(self, work):
        """As many as it says."""
        return work

    def score(self, works, beat):
        """The same for each."""
        found = logits_of(self.model)
        beat()
        return [found for _ in works]


class Served:
    """A policy with its engine, and a root that weights are pushed from."""

    def __init__(self, model, root):
        self.model, self.root = model, root
        self.versions = WeightVersions("loaded")
        self.batcher = Batcher(
            Logits(model), batch_tokens=4, max_queued_tokens=10**6, name="policy", versions=self.versions
        )
        self.changes = []
        self.live = LiveWeights(
            model, self.batcher, self.versions, name="policy", changed=lambda: self.changes.append(logits_of(model))
        )

    def push(self, path, version, **choices):
        """Push what is at a path below the root; the report."""
        return self.live.replace(staged_from_path(self.root, path, version, **choices)).result(PATIENCE_S)

    def saved(self, model, name):
        """Save a model below the root."""
        model.save_pretrained(self.root / name)
        return name

    def answer(self, pin=WeightPin()):
        """Logits and version."""
        answered = self.batcher.submit(1, pin=pin).result(PATIENCE_S)
        return answered.scores, answered.weight_version

    def close(self):
        """End both threads."""
        self.batcher.close(PATIENCE_S)
        self.live.close()


def same(model):
    """A model with the same weights in memory of its own."""
    return copy.deepcopy(model)
