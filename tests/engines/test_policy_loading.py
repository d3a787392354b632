import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

import torch  # noqa: E402

from creditd.engines.answer_heads import policy_head  # noqa: E402
from creditd.engines.errors import ModelUnsuitableError  # noqa: E402
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.policy_check import check_beginnings  # noqa: E402
from creditd.engines.policy_loading import PASS_ON_A_PROCESSOR, backbone_of, load_policy, pass_tokens  # noqa: E402
from engines.policies import SHARING, STATEFUL, policy, saved_policy  # noqa: E402
from engines.saved import saved  # noqa: E402


def spec_of(path="policy", **choices):
    """A registered policy."""
    return ModelSpec("policy", Path(path), kind="policy", **choices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHARING)
def test_models_with_keys_and_values_go_on_from_them(name, dtype):
    """Whatever their windows, caps, experts and positions: what differs is rounding."""
    model = policy(name, dtype=dtype)
    check = check_beginnings(model, backbone_of(model), policy_head(model), longest=256)
    assert check.passed
    assert check.failure is None
    assert check.error <= 0.1 * check.largest


def test_models_that_keep_something_else_are_found_out():
    """They read whole rows; why is said."""
    (name,) = STATEFUL
    model = policy(name)
    check = check_beginnings(model, backbone_of(model), policy_head(model), longest=256)
    assert not check.passed
    assert check.failure


def test_a_model_that_forgets_its_beginning_is_found_out():
    """An error that is no exception shows in the logits."""
    model = policy()
    whole = backbone_of(model)

    def forgetful(tokens, places, past, columns):
        return whole(tokens, places, None if past is not None and past.get_seq_length() else past, columns)

    check = check_beginnings(model, forgetful, policy_head(model), longest=256)
    assert not check.passed
    assert check.error > 0.01 * check.largest


def test_a_loaded_policy_is_frozen_and_says_what_it_is(tmp_path):
    """No weight asks for a gradient; its digest is that of its files."""
    saved_policy(tmp_path / "policy")
    loaded = load_policy(spec_of(), tmp_path)
    assert not loaded.model.training
    assert not any(one.requires_grad for one in loaded.model.parameters())
    assert loaded.reads_tries
    assert loaded.max_tokens == 256
    assert loaded.attention == "sdpa"
    assert len(loaded.fingerprint) == 32
    assert load_policy(spec_of(), tmp_path).fingerprint == loaded.fingerprint
    assert load_policy(spec_of(chunk_tokens=99), tmp_path).numerics != loaded.numerics


def test_what_is_no_policy_is_refused(tmp_path):
    """A reward model, and a model whose layers have no attention to bound the room of."""
    saved(tmp_path / "reward")
    with pytest.raises(ModelUnsuitableError, match=r"LlamaForSequenceClassification; a policy is a\s+causal language"):
        load_policy(spec_of("reward"), tmp_path)
    saved_policy(tmp_path / "policy")
    config = tmp_path / "policy" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": []}))
    with pytest.raises(ModelUnsuitableError, match="got the architecture none"):
        load_policy(spec_of(), tmp_path)


def test_passes_have_the_tokens_that_suit_the_device():
    """As registered; fewer on a processor, and never more than a batch."""
    assert pass_tokens(spec_of(chunk_tokens=77)) == 77
    assert pass_tokens(spec_of()) == PASS_ON_A_PROCESSOR
    assert pass_tokens(spec_of(batch_tokens=100)) == 100
    assert pass_tokens(spec_of(device="cuda", batch_tokens=8192)) == 8192
