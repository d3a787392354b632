"""The weights of a model in one process, as shards that come to a service."""

import json
import sys
import types

import pytest

pytest.importorskip("torch", reason="the lane `models` installs torch")
pytest.importorskip("peft", reason="the lane `models` installs peft")

import torch
from torch import nn

from adapters.pushing import Kept, agree, policy, tensors_in, with_adapter
from creditd.adapters.weight_shards import planned
from creditd.adapters.weight_sources import SharedTensor, own_name, tensors_of, whole
from creditd.adapters.weights import push_policy
from creditd.client import WeightsRefusedError, WeightVersionUnknownError

pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # asked by PEFT
]


def entry(name, *shape, dtype=torch.float32):
    """A tensor that only is planned."""
    return SharedTensor(name, shape, dtype)


# What there is


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_are_those_of_the_state_dict(tied):
    """Names, shapes and types are those that a model saves, a tied one once."""
    model = policy(tied=tied)
    expected = tensors_in(model)
    assert [(one.name, one.shape, one.dtype) for one in tensors_of(model)] == [
        (name, tuple(tensor.shape), tensor.dtype) for name, tensor in expected.items()
    ]
    assert ("lm_head.weight" in expected) is not tied


class Buffered(nn.Module):
    """A module with a buffer that is saved, and one that is not."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("passing", torch.zeros(4), persistent=False)


def test_buffers_that_are_saved_travel():
    """A buffer is a tensor of the model where it is saved, and none where it is not."""
    model = nn.ModuleDict({"inner": Buffered()})
    assert {one.name for one in tensors_of(model)} == set(model.state_dict()) == {"inner.weight", "inner.kept"}


@pytest.mark.parametrize(
    ("wrapped", "own"),
    [
        ("model.weight", "model.weight"),
        ("_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.weight", "model.layers.0.weight"),
        ("_orig_mod.model.layers.0._checkpoint_wrapped_module.bias", "model.layers.0.bias"),
        ("_orig_mod._fsdp_wrapped_module.a", "a"),
        ("_fsdp_wrapped_module", ""),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
    ],
)
def test_wrappers_leave_names(wrapped, own):
    """What stands around a module for training is no part of its name."""
    assert own_name(wrapped) == own


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch, of itself
def test_a_compiled_model_has_the_names_of_the_model():
    """A wrapper that torch puts around a model changes nothing of what travels."""
    model = policy()
    compiled = torch.compile(model)
    assert tensors_of(compiled) == tensors_of(model)


def test_copies_share_no_memory_with_the_model():
    """A step of the optimizer while a shard travels changes nothing of it."""
    model = policy()
    found = whole(tensors_of(model), keep=True)
    expected = tensors_in(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert agree(found, expected)
    assert whole(tensors_of(model), keep=False) == {}


def test_numbers_with_a_fraction_are_cast_and_others_are_not():
    """A type that was asked for is for weights; counters stay what they are."""
    found = whole(tensors_of(Buffered()), keep=True, dtype=torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in found.items()} == {"weight": torch.bfloat16, "kept": torch.int64}


def test_a_copy_that_fails_is_raised_once_all_parts_are_given():
    """Other processes wait for the parts of this one: all are given before anything is raised."""
    gathered = []

    class Part:
        """A tensor whose whole cannot be copied."""

        def __init__(self, name, *, fails):
            self.name, self.fails = name, fails

        def full_tensor(self):
            """The whole tensor."""
            gathered.append(self.name)
            return torch.zeros(1) if not self.fails else self

        def detach(self):
            """Fail, as a machine without memory does."""
            raise MemoryError("no room")

        dtype = torch.float32

    parts = [SharedTensor(name, (1,), torch.float32, Part(name, fails=name == "b")) for name in "abc"]
    with pytest.raises(MemoryError, match="no room"):
        whole(parts, keep=True)
    assert gathered == ["a", "b", "c"]


def test_parameters_of_zero_are_brought_together_one_by_one(monkeypatch):
    """A parameter whose part is empty is made whole by ZeRO's own context, and is empty again afterwards."""
    model, opened = nn.Linear(3, 2), []
    values = {id(parameter): parameter.detach().clone() for parameter in model.parameters()}

    class GatheredParameters:
        """Makes parameters whole, as deepspeed does."""

        def __init__(self, parameters):
            self.parameters = parameters

        def __enter__(self):
            opened.append(len(self.parameters))
            for parameter in self.parameters:
                parameter.data = values[id(parameter)].clone()

        def __exit__(self, *_):
            for parameter in self.parameters:
                parameter.data = torch.empty(0)

    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.ds_id, parameter.ds_shape = 1, parameter.shape
        parameter.data = torch.empty(0)
    monkeypatch.setitem(
        sys.modules,
        "deepspeed",
        types.SimpleNamespace(zero=types.SimpleNamespace(GatheredParameters=GatheredParameters)),
    )
    entries = tensors_of(model)
    assert [one.shape for one in entries] == [(2, 3), (2,)]
    assert agree(whole(entries, keep=True), expected)
    assert opened == [1, 1]
    assert all(parameter.numel() == 0 for parameter in model.parameters())


# Which shards


def test_shards_keep_the_order_and_hold_what_fits():
    """All tensors in their order, none twice; a shard ends where the next tensor would be too much."""
    entries = [entry(f"layer.{number}", 10, 10) for number in range(10)]
    shards = planned(entries, 1500)
    assert [one for shard in shards for one in shard] == entries
    assert [len(shard) for shard in shards] == [2] * 5
    assert len(planned(entries, 1 << 20)) == 1
    assert [len(shard) for shard in planned(entries, 1500, item_bytes=2)] == [3, 3, 3, 1]


def test_a_tensor_that_is_too_large_is_a_shard_by_itself():
    """It cannot be cut: it travels alone, and what stands before and behind it does not wait."""
    entries = [entry("a", 2), entry("b", 1000), entry("c", 2), entry("d", 2)]
    assert [[one.name for one in shard] for shard in planned(entries, 600)] == [["a"], ["b"], ["c", "d"]]


@pytest.mark.parametrize(("entries", "most"), [([], 10), ([entry("a", 1)], 0)])
def test_nothing_is_no_plan(entries, most):
    """A model without weights, and shards without bytes, are mistakes."""
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        planned(entries, most)


@pytest.mark.parametrize("most", [600, 2000, 5000, 1 << 20])
def test_no_shard_is_larger_than_it_may_be(most):
    """The bytes of each file, its header included, are within the limit, but for tensors that are larger alone."""
    service, model = Kept(), policy()
    report = push_policy(service.client(), "policy", model, weight_version="v", max_shard_bytes=most)
    assert report.n_shards == len(service.shards) == len(planned(tensors_of(model), most))
    for content in service.shards.values():
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert len(content) <= most or len([name for name in header if name != "__metadata__"]) == 1
    assert report.n_bytes == sum(map(len, service.shards.values()))
    assert agree(service.tensors(), tensors_in(model))


# What comes


def test_a_push_says_what_it_was():
    """Version, number of tensors and seconds of the swap are those that the service told."""
    service = Kept()
    report = push_policy(service.client(), "org/policy", policy(), weight_version="run:7", max_shard_bytes=4000)
    assert (report.weight_version, report.is_adapter, report.swap_s) == ("run:7", False, 0.25)
    assert report.n_tensors == len(tensors_in(policy()))
    assert report.seconds > 0
    assert service.announced == ["run:7"]
    assert [int(query["shard"]) for query in service.queries] == list(range(report.n_shards))
    assert {(query["weight_version"], query["adapter"], query["merged"]) for query in service.queries} == {
        ("run:7", "false", "false")
    }


def test_weights_travel_in_the_type_that_was_asked_for():
    """Half as many bytes, rounded as torch rounds."""
    service, model = Kept(), policy()
    push_policy(service.client(), "policy", model, weight_version="v", dtype=torch.bfloat16)
    assert agree(service.tensors(), {name: tensor.bfloat16() for name, tensor in tensors_in(model).items()})


@pytest.mark.parametrize("merged", [True, False])
def test_of_a_model_with_an_adapter_the_adapter_travels(merged, tmp_path):
    """Names, numbers and configuration are those that PEFT saves, and nothing of the model below comes with them."""
    from safetensors.torch import load_file

    service, model = Kept(), with_adapter(policy())
    report = push_policy(service.client(), "policy", model, weight_version="v", merged=merged, max_shard_bytes=1000)
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert agree(service.tensors(), saved)
    expected = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    found = service.config(tmp_path)
    assert found.pop("target_modules") == sorted(expected.pop("target_modules"))
    assert {**found, "inference_mode": True} == {**expected, "inference_mode": True}
    assert report.is_adapter
    assert report.n_shards > 1
    assert {(query["adapter"], query["merged"]) for query in service.queries} == {("true", str(merged).lower())}
    assert service.queries[0]["shard"] == "0"


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"target_modules": {"embed_tokens", "v_proj"}},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 1}},
    ],
)
def test_names_of_an_adapter_are_those_that_peft_saves(options, tmp_path):
    """Parts that PEFT saves under names of another form, too."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    config = LoraConfig(**{"r": 2, "target_modules": {"q_proj"}} | options)
    model = get_peft_model(policy(tied=False), config, adapter_name="mine")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    service = Kept()
    push_policy(service.client(), "policy", model, weight_version="v")
    assert agree(service.tensors(), load_file(tmp_path / "mine" / "adapter_model.safetensors"))


def test_patterns_that_are_regular_expressions_travel_as_names(tmp_path):
    """A service runs none of a caller; what they say of each layer is the same."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    ranks, alphas = {r"layers\.[1-9]\..*q_proj": 1}, {"v_proj": 5}
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], rank_pattern=ranks, alpha_pattern=alphas)
    model = get_peft_model(policy(), config)
    model.save_pretrained(tmp_path)
    service = Kept()
    push_policy(service.client(), "policy", model, weight_version="v")
    assert agree(service.tensors(), load_file(tmp_path / "adapter_model.safetensors"))
    found = service.config(tmp_path)
    layer = "model.layers.{}.self_attn.{}_proj"
    assert found["rank_pattern"] == {
        **{layer.format(0, name): 2 for name in "qv"},
        layer.format(1, "q"): 1,
        layer.format(1, "v"): 2,
    }
    assert found["alpha_pattern"] == alphas


def test_another_kind_of_adapter_is_refused():
    """A service takes LoRA, and nothing is pushed in its place."""
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    with pytest.raises(ValueError, match="of type IA3; expected LORA"):
        push_policy(Kept().client(), "policy", get_peft_model(policy(), config), weight_version="v")


def test_several_adapters_at_once_are_refused():
    """The policy of the service has one; which of several it would be is not for this to say."""
    model = with_adapter(policy())
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="got 2 active adapters"):
        push_policy(Kept().client(), "policy", model, weight_version="v")


def test_a_refusal_ends_the_push():
    """What the service refuses is raised by name, and no further shard is made."""
    service = Kept(refuses=2)
    with pytest.raises(WeightsRefusedError):
        push_policy(service.client(), "policy", policy(), weight_version="v", max_shard_bytes=2000)
    assert set(service.shards) == {0, 1}


def test_a_service_that_lost_shards_is_told_by_name():
    """A restart in the middle of a push is an unknown version: the push has to begin again."""
    service = Kept(loses=2)
    with pytest.raises(WeightVersionUnknownError):
        push_policy(service.client(), "policy", policy(), weight_version="v", max_shard_bytes=2000)


def test_what_fails_here_is_said_with_its_cause():
    """An error of this process is no refusal of the service."""
    service = Kept()
    client = service.client()
    client.close()
    with pytest.raises(RuntimeError, match="RuntimeError: the client is closed") as caught:
        push_policy(client, "policy", policy(), weight_version="v")
    assert isinstance(caught.value.__cause__, RuntimeError)
