"""A real GRPOTrainer whose own model says how much its answers depend on each token, beside a service that says so."""

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from types import SimpleNamespace

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from peft import LoraConfig
from trl import GRPOTrainer

from adapters.reshaping import (
    CONSTANT,
    MARK,
    MASKS,
    closing,
    config,
    entries,
    parameters,
    reshaping,
    served_model,
    uneven,
)
from adapters.tiny import model, tokenizer
from adapters.trainers import MARKS, Watch
from creditd.adapters import trl_sensitivity
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.sensitivity_in_process import OwnPolicy
from creditd.adapters.trl_settings import check_type
from services import running_service

pytestmark = MARKS
AGREEMENT = 1e-3
"""Weights are steep functions of float32 numbers that two orders of summing made."""
DRAWS = {"type": "gradient", "noise_samples": 4, "seed": 3}
METHODS = {"gradient": "gradient", "draws": DRAWS, "perturbation": "perturbation"}
OWN = {"in_process": True, "model": None}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service with a policy of other weights than the trainer's."""
    folder = tmp_path_factory.mktemp("served")
    with running_service("--config", served_model(folder), directory=folder) as address:
        yield address


@pytest.fixture(autouse=True)
def _closed():
    """Close the connections of trainers."""
    with closing():
        yield


def generated(trainer):
    """Advantages of each generation of a training."""
    watch = Watch(trainer)
    trainer.train()
    return [advantages for _, _, advantages in watch.generated]


@pytest.mark.parametrize("probe", ["answer_mean", "answer_joint"])
@pytest.mark.parametrize("method", METHODS)
def test_the_own_model_says_what_a_policy_with_its_weights_says(url, tmp_path, method, probe):
    """Generation by generation, while the weights change."""
    runs = []
    for place, options in (("there", {}), ("here", OWN)):
        trainer = reshaping(
            tmp_path / place, url, sensitivity=METHODS[method], probe=probe, masks=MASKS, max_steps=2, **options
        )
        runs.append((trainer, generated(trainer)))
    (there, served), (here, own) = runs
    assert len(served) == len(own) == 2
    for one, other in zip(served, own, strict=True):
        torch.testing.assert_close(one, other, rtol=AGREEMENT, atol=AGREEMENT)
    assert (own[0] != own[1]).any()
    for name in ("credit/effective_share", "credit/answer_not_found", "credit/reweighted"):
        assert entries(here, name) == pytest.approx(entries(there, name), abs=AGREEMENT)
    assert bool(entries(here, "credit/spread")) == bool(entries(there, "credit/spread")) == (method == "draws")
    assert not entries(here, "credit/pushes")
    assert there.sensitivity_request_ids
    assert not here.sensitivity_request_ids


def test_of_an_adapter_alone_its_weights_travel(tmp_path):
    """The policy has the weights below it from its own files, and says what the trainer's own model says."""
    (tmp_path / "served").mkdir()
    settings = served_model(tmp_path / "served")
    model(more=[MARK]).save_pretrained(tmp_path / "served" / "model", safe_serialization=True)
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    runs = []
    with running_service("--config", settings, directory=tmp_path) as address:
        for place, options in (("there", {}), ("here", OWN)):
            trainer = reshaping(tmp_path / place, address, peft=adapter, max_steps=2, **options)
            runs.append((trainer, generated(trainer)))
    (there, served), (_, own) = runs
    for one, other in zip(served, own, strict=True):
        torch.testing.assert_close(one, other, rtol=AGREEMENT, atol=AGREEMENT)
    whole = sum(value.numel() for value in there.model.get_base_model().parameters())
    assert 0 < entries(there, "credit/push_bytes")[0] < whole


@pytest.mark.parametrize("method", ["gradient", "perturbation"])
def test_measuring_leaves_the_training_alone(tmp_path, method):
    """With constant weights every bit is that of plain training: random numbers, gradients and modes are untouched."""
    runs = []
    for kind in (GRPOTrainer, None):
        options = {"kind": kind} if kind else OWN | {"reshape": CONSTANT, "sensitivity": method}
        trainer = reshaping(tmp_path / str(kind), completions=None, max_steps=3, gradient_checkpointing=True, **options)
        trainer.train()
        runs.append((parameters(trainer), entries(trainer, "loss"), trainer.model.training))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


def test_small_passes_say_the_same(tmp_path):
    """However few tokens go into one."""
    found = [
        generated(reshaping(tmp_path / str(most), most_tokens=most, sensitivity="perturbation", max_steps=1, **OWN))
        for most in (16, 4096)
    ]
    torch.testing.assert_close(*found, rtol=AGREEMENT, atol=AGREEMENT)


def test_a_number_that_is_none_is_a_failure(tmp_path):
    """Under `raise` the run ends; else the completions concerned keep their advantage, and are counted."""

    def broken(directory, **options):
        trainer = reshaping(directory, rewards=[uneven], max_steps=1, **OWN, **options)
        with torch.no_grad():
            trainer.model.lm_head.weight[:] = float("nan")
        return trainer

    with pytest.raises(ValueError, match="non_finite_value"):
        broken(tmp_path / "raise").train()
    trainer = broken(tmp_path / "plain", on_failure="group_reward")
    watch = Watch(trainer)
    trainer._generate_and_score_completions([{"prompt": "ask one"}] * 8)
    ((_, kept, advantages),) = watch.generated[:1]
    assert trainer._metrics["train"]["credit/fallbacks"] == [0.75]
    rows = [set(row[mask == 1].tolist()) for row, mask in zip(advantages, kept, strict=True)]
    assert all(len(row) == 1 for row in rows)


@pytest.mark.parametrize("version", [1, 2])
def test_a_sharded_model_in_a_short_type_has_no_gradient_from_the_start(version):
    """As accelerate will have it: by FSDP of either kind, or ZeRO-3; whole ones are copied."""

    def prepared(precision, **plugins):
        kind = DistributedType.FSDP if "fsdp_plugin" in plugins else DistributedType.DEEPSPEED
        return SimpleNamespace(distributed_type=kind, mixed_precision=precision, state=SimpleNamespace(**plugins))

    def fsdp(precision):
        plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
        if precision != "no":
            plugin.set_mixed_precision(precision)
        return prepared(precision, fsdp_plugin=plugin)

    def zero(precision, stage):
        return prepared(precision, deepspeed_plugin=SimpleNamespace(zero_stage=stage))

    whole, short = model(more=[MARK]), model(more=[MARK]).bfloat16()
    for accelerator, policy in (
        (fsdp("bf16"), whole), (fsdp("fp16"), whole), (fsdp("no"), short),
        (zero("bf16", 3), whole), (zero("no", 3), short),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"computes in torch\.b?float16.*expected bf16=False"):
            check_type(accelerator, policy)
    for accelerator, policy in (
        (fsdp("no"), whole), (zero("no", 3), whole), (zero("bf16", 2), short),
        (prepared("bf16", deepspeed_plugin=None), short), (Accelerator(cpu=True), short),
    ):  # fmt: skip
        check_type(accelerator, policy)


def test_the_type_is_looked_at_where_it_matters(tmp_path, monkeypatch):
    """For gradients of the own model, whoever gives them their name."""
    seen = []
    monkeypatch.setattr(trl_sensitivity, "check_type", lambda _, policy: seen.append(policy.dtype))
    for sensitivity in ("gradient", DRAWS, "perturbation"):
        reshaping(tmp_path, sensitivity=sensitivity, **OWN)
    assert seen == [torch.float32] * 2


def test_a_padding_token_that_ends_texts_is_refused_at_the_start():
    """Where nobody names another one."""
    reader = tokenizer([MARK])
    reader.pad_token = reader.eos_token
    asked = config(sensitivity="perturbation", **OWN)
    with pytest.raises(ValueError, match="token_id"):
        OwnPolicy(asked, reader, model(more=[MARK]).config)
    named = SensitivityConfig(parser="hashes", in_process=True, sensitivity={"type": "perturbation", "token_id": 4})
    OwnPolicy(named, reader, model(more=[MARK]).config)


def test_ends_that_only_the_generation_names_are_no_padding(tmp_path):
    """A policy that ends texts with several tokens names them there, its padding token among them."""
    reader = tokenizer([MARK])
    reshaping(tmp_path / "usual", sensitivity="perturbation", ends=[reader.eos_token_id], **OWN)
    for ends in ([reader.eos_token_id, reader.pad_token_id], reader.pad_token_id):
        with pytest.raises(ValueError, match="token_id"):
            reshaping(tmp_path / "ends", sensitivity="perturbation", ends=ends, **OWN)
