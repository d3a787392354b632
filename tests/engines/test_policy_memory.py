from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines.answer_heads import Float32Weights, policy_head  # noqa: E402
from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.gradient import gradients  # noqa: E402
from creditd.engines.memory import ForwardShape  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.perturbation import perturbed  # noqa: E402
from creditd.engines.policy_loading import backbone_of, load_policy  # noqa: E402
from creditd.engines.policy_memory import copy_bytes, gradient_bytes, perturbation_bytes  # noqa: E402
from creditd.engines.policy_passes import Passes  # noqa: E402
from creditd.engines.policy_protocol import SensitivityOptions  # noqa: E402
from engines.architectures import VOCABULARY  # noqa: E402
from engines.policies import SHARING, item_of, passes_of, policy, saved_policy  # noqa: E402
from engines.shapes import peak_bytes  # noqa: E402

LONGEST = 200
LOOSE = 16
"""A bound that is more than this many times what was needed would refuse policies that fit."""
ANSWER = 12


def wide(name, dtype=torch.float32):
    """A policy whose layers are most of what is computed."""
    made = policy(name)
    config = type(made.config)(
        **{
            **made.config.to_dict(),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "layer_types": None,
        }
    )
    torch.manual_seed(0)
    return type(made)(config).eval().requires_grad_(requires_grad=False).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probe", ["answer_mean", "answer_joint"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "mistral with a window"])
def test_perturbation_takes_no_more_than_was_said(name, probe, dtype):
    """A long prompt and many rows, of models with windows and soft caps too, in two types."""
    model, item = wide(name, dtype), item_of(prompt=60, reasoning=110, conclusion=9, answer=ANSWER)
    head, passes = policy_head(model), passes_of(model)

    def work():
        perturbed(passes, head, item, probe=probe, token_id=0, most_tokens=1024)

    bound = perturbation_bytes(
        ForwardShape.of(model), most_tokens=1024, longest=LONGEST, vocabulary=VOCABULARY, n_read=ANSWER, shares=True
    )
    work()
    peak = peak_bytes("cpu", work)
    assert peak <= bound <= LOOSE * peak + (1 << 20)


@pytest.mark.parametrize(
    ("name", "attention"),
    [*((name, kind) for name in ("llama", "gpt_neox", "mixtral") for kind in ("sdpa", "eager")), ("gemma2", "eager")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_takes_no_more_than_was_said(name, dtype, attention):
    """What every layer keeps for the way back, and a copy of the weights where they are shorter."""
    model = wide(name, dtype)
    model.set_attn_implementation(attention)
    items = [item_of(seed, prompt=60, reasoning=110, conclusion=9, answer=ANSWER) for seed in range(5)]
    head = policy_head(model)

    def work():
        weights = Float32Weights.of(model)
        passes = Passes(backbone_of(model, weights), model.get_input_embeddings(), model.device)
        whole = replace(head, weights=weights) if weights.copies else head
        gradients(passes, whole, items, SensitivityOptions("gradient"), pad_id=0)

    bound = gradient_bytes(
        model, ForwardShape.of(model), most_tokens=1024, longest=LONGEST, vocabulary=VOCABULARY, n_read=ANSWER
    )
    work()
    peak = peak_bytes("cpu", work)
    assert peak <= bound <= LOOSE * peak + (1 << 20)


def test_the_copy_of_the_weights_is_counted():
    """Four bytes for each number that is shorter; none for a model in float32."""
    assert copy_bytes(policy()) == 0
    short = policy(dtype=torch.bfloat16)
    assert copy_bytes(short) == 4 * sum(one.numel() for one in short.parameters())
    copies = Float32Weights.of(short).copies.values()
    assert sum(one.numel() * one.element_size() for one in copies) == copy_bytes(short)


def test_the_bounds_grow_with_what_they_are_about():
    """Longer rows, larger passes, larger vocabularies and more answer tokens need more."""
    model = policy("llama")
    shape = ForwardShape.of(model)
    usual = {"most_tokens": 1024, "longest": 512, "vocabulary": 1 << 12, "n_read": 4}
    for more in ({"most_tokens": 2048}, {"longest": 2048}, {"vocabulary": 1 << 22}, {"n_read": 400}):
        by_perturbation = [perturbation_bytes(shape, **one, shares=True) for one in (usual, usual | more)]
        by_gradient = [gradient_bytes(model, shape, **one) for one in (usual, usual | more)]
        assert by_perturbation[0] < by_perturbation[1]
        assert by_gradient[0] < by_gradient[1]


def test_a_policy_that_does_not_fit_is_refused_by_name(tmp_path):
    """At boot, with what it needs, what there is, and what to lower."""
    saved_policy(tmp_path / "policy")
    spec = ModelSpec("small", Path("policy"), kind="policy", max_forward_bytes=1 << 20)
    with pytest.raises(ModelUnsuitableError, match=r"model small: a forward pass needs up to .* lower chunk_tokens"):
        load_policy(spec, tmp_path)
    needed = load_policy(replace(spec, max_forward_bytes=None), tmp_path).forward_bytes
    assert load_policy(replace(spec, max_forward_bytes=needed), tmp_path).forward_bytes == needed


def test_every_family_has_a_bound(tmp_path):
    """Their configurations tell what is needed."""
    for name in SHARING:
        saved_policy(tmp_path / name, name)
        assert load_policy(ModelSpec(name, Path(name), kind="policy"), tmp_path).forward_bytes > 0
