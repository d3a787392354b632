"""Spans, token rewards, sensitivities and whole responses in verl: what each estimator trains on."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transfer_queue", reason="the lane `trainer` installs verl into an environment of its own")
pytest.importorskip("verl", reason="the lane `trainer` installs verl into an environment of its own")

from adapters import verl_batches as own
from adapters.verl_batches import IDS, advantages, configured, put, sampled, trainer, with_credit
from conventions.groups import OF_A_LIBRARY
from creditd.adapters.completions import token_offsets
from creditd.client import Client, CreditdError
from services import running_service

pytestmark = [
    *OF_A_LIBRARY,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("verl_queue"),
]


def spans(**keys):
    """Keys of spans that a function judges."""
    return {"url": "'local:'", "reward": "'pkg://adapters.verl_batches:judge'"} | keys


def test_spans_have_the_advantages_of_the_client():
    """SCAR in the form of GRPO."""
    made = trainer(configured(*with_credit("creditd_scar", **spans(kind="spans", segmentation="token"))))
    put()
    meta, metrics = sampled(made)
    found = advantages(made, meta)
    texts = [own.Tokenizer().decode([token for token in row if token > 1]) for row in IDS.values()]
    decode = lambda ids: own.Tokenizer().decode([token for token in ids if token > 1])  # noqa: E731
    with Client("local:") as client:
        expected = client.scar(
            [0, 0, 1, 1],
            texts,
            utility=lambda _, text: own.judge([0], [text])[0],
            token_offsets=[token_offsets(row, decode)[1] for row in IDS.values()],
            groups=[0, 0, 1, 1],
            segmentation="token",
            advantage="pooled",
            expect={"group_size": 2},
        )
    rows = dict(zip(IDS, expected.token_advantages.to_list(), strict=True))
    assert found == own.as_float32(rows)
    assert metrics["credit/evaluations"] > 0


def test_ppo_trains_on_token_rewards_of_spans_by_its_own_gae():
    """Written into the queue where the trainer looks for them; the sum of a response is v(P) − v(∅)."""
    import torch
    import transfer_queue as tq
    from verl.trainer.ppo.core_algos import compute_gae_advantage_return

    made = trainer(configured(*with_credit("gae", **spans(kind="span_rewards"))))
    put()
    meta, metrics = sampled(made)
    data = tq.kv_batch_get(meta.keys, "train", ["rm_scores", "response_mask"])
    sums = {key: float(row.sum()) for key, row in zip(meta.keys, data["rm_scores"].unbind(), strict=True)}
    decode = lambda ids: own.Tokenizer().decode([token for token in ids if token > 1])  # noqa: E731
    assert sums == pytest.approx({key: own.judge([0], [decode(row)])[0] for key, row in IDS.items()}, abs=1e-6)
    assert sum(float(abs(row) > 0) for row in data["rm_scores"].unbind()[0]) >= 1
    values = torch.nested.as_nested_tensor([torch.zeros(len(IDS[key])) for key in meta.keys], layout=torch.jagged)
    from tensordict import TensorDict

    tq.kv_batch_put(keys=meta.keys, partition_id="train", fields=TensorDict({"values": values}, batch_size=[4]))
    found = advantages(made, meta)
    padded = data.to_padded_tensor()
    expected, _ = compute_gae_advantage_return(
        padded["rm_scores"],
        torch.zeros_like(padded["rm_scores"]),
        padded["response_mask"],
        torch.tensor(1.0),
        torch.tensor(1.0),
    )
    for key, row in zip(meta.keys, expected, strict=True):
        assert found[key] == pytest.approx(row[: len(IDS[key])].tolist(), abs=1e-6)
    assert metrics["credit/units"] > 0


def test_token_rewards_need_an_estimator_that_keeps_them():
    """GRPO adds them up."""
    with pytest.raises(ValueError, match="would add the rewards of tokens up"):
        trainer(configured(*with_credit("grpo", **spans(kind="span_rewards"))))


def test_advantages_are_reshaped_by_sensitivities_of_a_pinned_policy(tmp_path):
    """Advantages are those of verl's own rewards by the client; another version than the policy has is an error."""
    keys = {"kind": "sensitivity", "model": "policy", "parser": "last_line"}
    with running_service(directory=tmp_path, script=Path(__file__).with_name("policy_service.py")) as url:
        made = trainer(configured(*with_credit("creditd_oar", url=f"'{url}'", **keys)))
        put(rewards={"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 0.0, "b_1_0": 0.0})
        meta, metrics = sampled(made)
        found = advantages(made, meta)
        pinned = trainer(configured(*with_credit("creditd_oar", url=f"'{url}'", weight_version="'run:{step}'", **keys)))
        own.emptied()
        put(rewards={"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 0.0, "b_1_0": 0.0})
        with pytest.raises(CreditdError, match="weight_version_unknown"):
            sampled(pinned, step=5)
    with Client("local:") as client:
        plain = client.group([[1.0, 0.0], [0.0, 0.0]], advantage="grpo", convention="verl").advantages
    assert sum(found["a_0_0"]) == pytest.approx(4 * plain[0][0], rel=1e-5)
    assert found["b_0_0"] == [0.0, 0.0]
    assert metrics["credit/without_contrast"] == 0.5


def tensors(rewards, uids):
    """What verl hands to an estimator."""
    import torch

    mask = torch.ones(len(rewards), 3)
    mask[-1] = 0.0
    scores = torch.zeros(len(rewards), 3)
    scores[:, 2] = torch.tensor(rewards)
    return {"token_level_rewards": scores, "response_mask": mask, "index": np.array(uids, dtype=object)}


def test_group_advantages_are_those_of_verl_and_padding_is_in_no_group():
    """Registered under a name; by its own choice another rule."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_adv_estimator_fn

    import creditd.adapters.verl_plugin  # noqa: F401 - registers

    given = tensors([1.0, 0.0, 0.5, 2.0, 9.0], list("aabba"))
    estimate = get_adv_estimator_fn("creditd_group")
    found, returns = estimate(**given, config={}, non_tensor_batch=None, batch=None)
    four = {name: value[:4] for name, value in given.items()}
    expected, _ = compute_grpo_outcome_advantage(**four)
    np.testing.assert_allclose(found[:4], expected, atol=1e-6)
    assert found[4].tolist() == [0.0] * 3
    assert returns is found
    other, _ = estimate(**given, config={"creditd": {"advantage": "rloo"}})
    assert other[0].tolist() == pytest.approx([1.0] * 3)


def test_group_advantages_take_their_choices_from_the_configuration():
    """In verl's own way to an estimator, with a padding row behind the batch."""
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size

    made = trainer(configured("algorithm.adv_estimator=creditd_group", "+algorithm.creditd.advantage=rloo"))
    put(rewards={"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 0.5, "b_1_0": 0.5})
    meta, _ = sampled(made)
    found = advantages(made, upsample_batch_to_divisible_size(meta, 5, 1))
    assert [found[key] for key in IDS] == [[1.0] * 4, [-1.0] * 5, [0.0] * 2, [0.0] * 6]
    assert [row for key, row in found.items() if key not in IDS] == [[0.0]]


@pytest.mark.parametrize("name", ["creditd_shapley", "creditd_scar", "creditd_oar"])
def test_an_estimator_without_its_sampler_says_what_to_configure(name):
    """And computes nothing."""
    made = trainer(configured(f"algorithm.adv_estimator={name}"))
    put()
    meta, _ = sampled(made)
    with pytest.raises(
        RuntimeError, match=f"{name} has no advantages without the sampler.*pkg://creditd.adapters.verl"
    ):
        made._compute_advantage(meta, {})
