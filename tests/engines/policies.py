"""Small causal language models of every shape that policies have, completions, and what plain transformers say."""

from contextlib import contextmanager

import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from creditd.engines.policy_loading import backbone_of
from creditd.engines.policy_passes import Passes
from creditd.engines.policy_protocol import ReasonedTokens
from engines.architectures import POSITIONS, SHAPE, VOCABULARY
from engines.saved import tokenizer

PROBES = ("last", "answer_mean", "answer_joint")
_SHAPE = {key: value for key, value in SHAPE.items() if key != "num_labels"}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}
SHARING = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GROUPED, head_dim=8)),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**_GROUPED, sliding_window=8)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**_GROUPED, head_dim=8, sliding_window=8, query_pre_attn_scalar=8, final_logit_softcapping=2.0)
    ),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**_GROUPED, logits_scaling=3.0)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SHAPE)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2, bos_token_id=1, eos_token_id=2)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_GROUPED, num_local_experts=4, sliding_window=None)),
}
"""Models that go on from keys and values: with windows, soft caps, scales and experts among them."""
STATEFUL = {
    "lfm2": lambda: Lfm2ForCausalLM(
        Lfm2Config(**_GROUPED, layer_types=["conv", "full_attention"], block_multiple_of=8)
    ),
}
"""Models that keep something else."""


def policy(name="qwen3", *, dtype=torch.float32, noise=0.1, seed=0):
    """The policy of a name, the same each time, in evaluation mode, with weights that make its tokens differ."""
    torch.manual_seed(seed)
    model = {**SHARING, **STATEFUL}[name]().eval().requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * noise)
    return model.to(dtype)


def saved_policy(folder, name="qwen3", *, seed=0, **special):
    """A directory with a policy and its tokenizer, whose special tokens may be others."""
    model = policy(name, seed=seed)
    model.save_pretrained(folder)
    made = tokenizer()
    for role, token in special.items():
        setattr(made, role, token)
    made.save_pretrained(folder)
    return model


def passes_of(model, *, shares=True, beat=lambda: None):
    """A policy as its passes see it."""
    return Passes(backbone_of(model), model.get_input_embeddings(), model.device, shares, beat)


@contextmanager
def tokens_of(model):
    """The tokens of each pass from now on."""
    tokens = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _module, inputs, _made: tokens.append(inputs[0].numel())
    )
    yield tokens
    handle.remove()


def item_of(seed=0, *, prompt=12, reasoning=30, conclusion=4, answer=3, after=2, measured=None):
    """A completion with random tokens: reasoning, a conclusion, an answer, and what comes after it."""
    random = np.random.default_rng(seed)
    n_tokens = reasoning + conclusion + answer + after
    return ReasonedTokens(
        random.integers(3, VOCABULARY - 40, prompt),
        random.integers(3, VOCABULARY - 40, n_tokens),
        np.arange(reasoning) if measured is None else np.array(measured),
        (reasoning + conclusion, reasoning + conclusion + answer),
    )


def plain_outcome(model, item, probe, tokens=None, embeddings=None):
    """What a probe sees, by one forward pass of plain transformers over the whole text; float64."""
    text = np.concatenate([item.prompt_ids, item.completion_ids])
    given = {"input_ids": torch.from_numpy(text if tokens is None else tokens)[None]}
    if embeddings is not None:
        given = {"inputs_embeds": embeddings}
    logits = model(**given, use_cache=False).logits[0].double()
    first = len(item.prompt_ids) + item.answer[0] - 1
    n_answer = item.answer[1] - item.answer[0]
    if probe == "last":
        return torch.log_softmax(logits[first], dim=-1)
    if probe == "answer_mean":
        return torch.log_softmax(logits[first : first + n_answer].mean(dim=0), dim=-1)
    known = torch.log_softmax(logits[first : first + n_answer], dim=-1)
    answer = torch.from_numpy(item.completion_ids[item.answer[0] : item.answer[1]])
    return known.gather(1, answer[:, None]).mean()


def plain_change(clean, found, probe):
    """KL(clean ‖ found), or the fall of the mean log-likelihood."""
    return clean - found if probe == "answer_joint" else (clean.exp() * (clean - found)).sum()


def plain_perturbation(model, item, probe, token_id):
    """A loop of full forward passes, one for each measured token."""
    text = np.concatenate([item.prompt_ids, item.completion_ids])
    with torch.inference_mode():
        clean = plain_outcome(model, item, probe)
        found = []
        for position in item.positions:
            changed = text.copy()
            changed[len(item.prompt_ids) + position] = token_id
            found.append(float(plain_change(clean, plain_outcome(model, item, probe, changed), probe)))
    return np.array(found)
