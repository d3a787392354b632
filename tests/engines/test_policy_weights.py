"""A whole policy whose weights are replaced: sensitivities are those of a policy that was loaded with them."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
peft = pytest.importorskip("peft", reason="the lane `models` installs peft")
pytestmark = [
    pytest.mark.models,
    # peft's own, of transformers' new names
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from creditd.engines.errors import WeightVersionMismatchError, WeightVersionUnknownError  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.policy_engine import PolicyEngine  # noqa: E402
from creditd.engines.policy_protocol import ReasonedTokens, SensitivityOptions, WeightPin  # noqa: E402
from creditd.engines.weight_files import staged_from_path  # noqa: E402
from engines.architectures import VOCABULARY  # noqa: E402
from engines.saved import tokenizer  # noqa: E402

PATIENCE_S = 120.0
AGREEMENT = 1e-3
"""Of the largest sensitivity, between weights that an adapter is added to and those that it is beside, in float32: a
divergence of 1e-5 nats between distributions of logits that are rounded at 1e-7."""
METHODS = ("perturbation", "gradient")


def saved_policy(folder, seed):
    """A directory with a policy and its tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


def loaded(root, name, dtype="float32"):
    """The engine of a directory."""
    return PolicyEngine.load(ModelSpec("policy", Path(name), kind="policy", dtype=dtype), root)


def measured(engine, pin=WeightPin(), expires_s=float("inf")):
    """Sensitivities by both methods, one after another, and the versions that they are of."""
    ids = np.random.default_rng(0).integers(5, 200, size=30)
    item = ReasonedTokens(ids[:8], ids[8:], np.arange(12), (14, 18))
    found = []
    for method in METHODS:
        prepared = engine.prepared_sensitivities([item], SensitivityOptions(method))
        assert not prepared.failures
        found.append(engine.sensitivities(prepared, expires_s, pin=pin).result(PATIENCE_S))
    return [one.sensitivities[0] for one in found], {one.weight_version for one in found}


def push(engine, root, path, version, **choices):
    """Push weights below a root; the report."""
    return engine.replace_weights(staged_from_path(root, path, version, **choices)).result(PATIENCE_S)


def far(found, expected):
    """The largest difference of any method, of its largest sensitivity."""
    return max(np.abs(one - other).max() / np.abs(other).max() for one, other in zip(found, expected, strict=True))


@pytest.fixture
def root(tmp_path):
    """A root with two policies."""
    for seed, name in enumerate(("old", "new")):
        saved_policy(tmp_path / name, seed)
    return tmp_path


def test_pushed_weights_have_the_sensitivities_of_a_policy_that_was_loaded_with_them(root):
    """The first version is the fingerprint of the files; each answer names the version that it is of."""
    engine, other = loaded(root, "old"), loaded(root, "new")
    before, versions = measured(engine)
    assert versions == {engine.weight_version} == {engine.status().fingerprint}
    expected, _ = measured(other)
    push(engine, root, "new", "RUN:1")
    found, versions = measured(engine, WeightPin("RUN:1", "fail"))
    assert versions == {"RUN:1"} == {engine.weight_version}
    for one, same, past in zip(found, expected, before, strict=True):
        assert np.array_equal(one, same)
        assert not np.allclose(one, past, rtol=0.1)
    with pytest.raises(WeightVersionMismatchError):
        measured(engine, WeightPin(engine.status().fingerprint, "fail"))
    with pytest.raises(WeightVersionUnknownError):
        measured(engine, WeightPin("RUN:2"))
    engine.announce_weights("RUN:2")
    assert engine.weight_state().announced == ("RUN:2",)
    with pytest.raises(WeightVersionMismatchError):
        measured(engine, WeightPin("RUN:2"), expires_s=engine._clock() + 0.05)
    for one in (engine, other):
        one.close()


def test_an_adapter_has_the_same_sensitivities_merged_or_not(root):
    """Both are those of a policy that was loaded with the sums as its weights; afterwards all weights can come."""
    model = LlamaForCausalLM.from_pretrained(root / "old")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(root / "adapter")
    adapted.merge_and_unload().save_pretrained(root / "sum")
    tokenizer().save_pretrained(root / "sum")
    engine, other, new = loaded(root, "old"), loaded(root, "sum"), loaded(root, "new")
    before, _ = measured(engine)
    expected, _ = measured(other)
    assert far(before, expected) > 0.1
    for number in range(4):
        push(engine, root, "adapter", f"RUN:{number}", adapter=True, merged=bool(number % 2))
        found, versions = measured(engine)
        assert versions == {f"RUN:{number}"}
        assert far(found, expected) <= AGREEMENT
    push(engine, root, "new", "RUN:9")
    assert far(measured(engine)[0], measured(new)[0]) == 0.0
    for one in (engine, other, new):
        one.close()


def test_weights_are_cast_to_the_type_of_the_policy(root):
    """A policy in bfloat16 takes float32, and measures as one that was loaded from those files does."""
    engine, other = loaded(root, "old", "bfloat16"), loaded(root, "new", "bfloat16")
    assert push(engine, root, "new", "RUN:1").cast_from == "float32"
    assert far(measured(engine)[0], measured(other)[0]) == 0.0
    for one in (engine, other):
        one.close()
