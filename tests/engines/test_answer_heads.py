import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402
from torch import nn  # noqa: E402
from transformers import BertConfig, BertModel  # noqa: E402

from creditd.engines import answer_heads  # noqa: E402
from creditd.engines.answer_heads import Float32Weights, GivenLogits, PolicyHead, policy_head  # noqa: E402
from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from engines.architectures import SHAPE  # noqa: E402
from engines.policies import SHARING, STATEFUL, policy  # noqa: E402

ROW = torch.arange(3, 20)[None]


def states_of(model):
    """The states of a row without the head."""
    return model.base_model(input_ids=ROW, use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("name", [*SHARING, *STATEFUL])
def test_logits_are_those_of_the_model(name):
    """With the scale and the soft cap that a configuration names; only a cap keeps a head from being linear."""
    model = policy(name)
    head = policy_head(model)
    expected = model(input_ids=ROW, use_cache=False).logits[0]
    assert torch.allclose(head(states_of(model)), expected, atol=1e-5 * float(expected.abs().max()))
    assert head.averages == (name != "gemma2")
    assert (head.factor != 1.0) == (name == "granite")


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "llama, tied"])
def test_a_head_in_bfloat16_computes_in_float32(name, monkeypatch):
    """A part of its weights at a time, or with a copy: the same logits, that are not rounded to eight bits."""
    model = policy(name, dtype=torch.bfloat16)
    states = states_of(model)
    head = policy_head(model)
    whole = head(states)
    assert whole.dtype == torch.float32
    assert not torch.equal(whole, whole.bfloat16().float())
    monkeypatch.setattr(answer_heads, "VOCABULARY_PART", 32 * 7)
    assert torch.allclose(head(states), whole, rtol=0, atol=1e-5)
    copied = PolicyHead(model, head.factor, head.cap, Float32Weights.of(model))
    assert torch.allclose(copied(states), whole, rtol=0, atol=1e-5)


def test_a_head_that_is_something_else_is_called():
    """With an adapter around it, say: it knows itself what it computes."""
    model = policy()

    class Doubled(nn.Linear):
        """Not what its weights say."""

        def forward(self, states):
            return 2.0 * super().forward(states)

    doubled = Doubled(32, model.config.vocab_size, bias=False)
    doubled.weight = model.lm_head.weight
    plain = policy_head(model)(states_of(model))
    model.set_output_embeddings(doubled)
    assert torch.allclose(policy_head(model)(states_of(model)), 2.0 * plain)


def test_a_head_that_cannot_be_told_is_refused():
    """A scale that the configuration does not name, and a model without any head."""
    model = policy("granite")

    def scaled(_module, _inputs, made):
        made.logits = 1.5 * made.logits
        return made

    model.register_forward_hook(scaled)
    with pytest.raises(ModelUnsuitableError, match="are not those of its output embeddings"):
        policy_head(model)
    shape = {key: value for key, value in SHAPE.items() if key != "num_labels"}
    with pytest.raises(ModelUnsuitableError, match="has no head for tokens"):
        policy_head(BertModel(BertConfig(**shape)))


def test_logits_that_are_given_are_widened():
    """For passes through a whole model."""
    logits = torch.ones(2, 3, dtype=torch.bfloat16)
    assert GivenLogits()(logits).dtype == torch.float32
