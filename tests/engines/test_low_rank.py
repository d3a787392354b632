import json
import sys

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
peft = pytest.importorskip("peft", reason="the lane `models` installs peft")
pytestmark = [
    pytest.mark.models,
    # peft's own, of models with tied weights and of transformers' new names
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from creditd.engines.errors import EngineStoppedError, WeightsRefusedError, WeightVersionMismatchError  # noqa: E402
from creditd.engines.low_rank import checked_config  # noqa: E402
from creditd.engines.weight_uploads import ShardPlace, WeightUploads  # noqa: E402
from engines.live_policies import PATIENCE_S, Served, logits_of, policy, same  # noqa: E402
from engines.tensor_files import checksum  # noqa: E402

AGREEMENT = 2e-6
"""Between an adapter beside the weights and one that is added to them, in float32: logits are of the order of one."""
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def adapted(base, folder, seed=0, kind="llama", **config):
    """An adapter with random weights, saved by peft; the model that peft has with it."""
    torch.manual_seed(seed)
    given = {"r": 3, "lora_alpha": 7, "target_modules": TARGETS[kind], "task_type": "CAUSAL_LM", **config}
    model = peft.get_peft_model(same(base), peft.LoraConfig(**given, fan_in_fan_out=kind == "gpt2"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture
def served(tmp_path):
    """A policy that answers."""
    made = Served(policy(0), tmp_path)
    yield made
    made.close()


def far(scores, others):
    """The largest difference."""
    return float(np.abs(scores - others).max())


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 2}},
        {"layers_to_transform": [1]},
        {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
        {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"target_modules": r".*layers\.[01]\.self_attn\.(q|v)_proj"},
        {"target_modules": r".*_proj", "exclude_modules": r".*(gate|up)_proj"},
        {"layers_to_transform": [0], "layers_pattern": "lay.*"},
    ],
    ids=lambda config: ",".join(config) or "plain",
)
def test_an_adapter_gives_what_peft_gives_merged_or_not(served, config):
    """Unmerged bit for bit, merged to rounding; both differ from the weights below by far more."""
    with_adapter = adapted(served.model, served.root / "adapter", **config)
    expected, before = logits_of(with_adapter), logits_of(served.model)
    report = served.push("adapter", "beside", adapter=True)
    scores, version = served.answer()
    assert (version, report.cast_from) == ("beside", None)
    assert report.n_tensors == len(load_file(served.root / "adapter/adapter_model.safetensors"))
    assert np.array_equal(scores, expected)
    served.push("adapter", "merged", adapter=True, merged=True)
    merged = served.answer()[0]
    assert far(merged, expected) <= AGREEMENT
    assert far(before, expected) > 100 * AGREEMENT
    assert not any(parameter.requires_grad for name, parameter in served.model.named_parameters() if "lora" in name)


def test_convolutions_of_gpt2_take_adapters(tmp_path):
    """Its linear layers are stored the other way round."""
    served = Served(policy(0, kind="gpt2"), tmp_path)
    expected = logits_of(adapted(served.model, tmp_path / "adapter", kind="gpt2"))
    served.push("adapter", "beside", adapter=True)
    assert np.array_equal(served.answer()[0], expected)
    served.push("adapter", "merged", adapter=True, merged=True)
    assert far(served.answer()[0], expected) <= AGREEMENT
    served.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_come_and_go_and_nothing_is_rounded_away(tmp_path, dtype):
    """After thirty adapters, merged and not, the weights below are those that were loaded, to the last bit."""
    served = Served(policy(0, dtype=dtype), tmp_path)
    before = {name: tensor.clone() for name, tensor in served.model.state_dict().items()}
    for seed in range(3):
        adapted(policy(0), tmp_path / f"adapter-{seed}", seed)
    answers = {}
    for number in range(30):
        name, merged = f"adapter-{number % 3}", number % 2 == 1
        served.push(name, f"{number}", adapter=True, merged=merged)
        found = served.answer()[0]
        assert np.array_equal(answers.setdefault((name, merged), found), found)
    assert len(answers) == 6
    served.batcher.swap(lambda _beat: served.live._adapters.unmount(), "bare").result(PATIENCE_S)
    after = served.model.state_dict()
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor)
    served.close()


def test_the_weights_of_a_short_adapter_stay_float32(tmp_path):
    """A policy in bfloat16 computes the adapter as a trainer does that keeps it in float32."""
    base = policy(0, dtype=torch.bfloat16)
    served = Served(base, tmp_path)
    adapted(base, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(same(base), tmp_path / "adapter").eval()
    served.push("adapter", "v1", adapter=True)
    assert np.array_equal(served.answer()[0], logits_of(loaded))
    assert {one.dtype for name, one in served.model.named_parameters() if "lora" in name} == {torch.float32}
    served.close()


@pytest.mark.parametrize("merged", [False, True])
def test_all_weights_can_be_pushed_over_an_adapter(served, merged):
    """They take its place, and it leaves nothing; the next adapter stands on them."""
    modules = [type(module) for module in served.model.modules()]
    adapted(served.model, served.root / "adapter")
    served.push("adapter", "v1", adapter=True, merged=merged)
    new = policy(1)
    served.push(served.saved(new, "new"), "v2")
    assert np.array_equal(served.answer()[0], logits_of(new))
    assert [type(module) for module in served.model.modules()] == modules
    expected = logits_of(adapted(new, served.root / "second", 5))
    served.push("second", "v3", adapter=True)
    assert np.array_equal(served.answer()[0], expected)
    with pytest.raises(WeightVersionMismatchError):
        served.push("adapter", "v1", adapter=True, merged=merged)


def test_an_adapter_comes_in_a_shard_as_well(served):
    """Its configuration is in the metadata."""
    expected = logits_of(adapted(served.model, served.root / "adapter"))
    config = (served.root / "adapter/adapter_config.json").read_text(encoding="utf-8")
    tensors = load_file(served.root / "adapter/adapter_model.safetensors")
    save_file(tensors, served.root / "shard", metadata={"adapter_config": config})
    content = (served.root / "shard").read_bytes()
    uploads = WeightUploads(served.root / "spool", max_bytes=10**6, max_shard_bytes=10**6, ttl_s=60.0)
    writer = uploads.begin(ShardPlace("policy", "v1", 0, 1, checksum(content), adapter=True), "loaded")
    writer.write(content)
    served.live.replace(writer.finish().staged).result(PATIENCE_S)
    assert np.array_equal(served.answer()[0], expected)
    uploads.close()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"peft_type": "LOHA"}, "another peft_type"),
        ({"peft_type": None}, "another peft_type"),
        ({"bias": "all"}, "expected bias none"),
        ({"init_lora_weights": "pissa"}, "changes the weights below it"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save', which is not served"),
        ({"megatron_config": {"a": 1}}, "'megatron_config', which is not served"),
        ({"target_parameters": ["x"]}, "'target_parameters', which is not served"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication', which is not served"),
        ({"lora_bias": True}, "'lora_bias', which is not served"),
        ({"something_new": 1}, "'something_new', which is not served"),
        ({"target_modules": ["nothing"]}, "peft cannot put this adapter"),
        ({"r": -1}, "peft cannot put this adapter"),
        ({"r": "x"}, "peft cannot put this adapter"),
        ({"r": 4}, "of shape"),
        ({"target_modules": ["q_proj"]}, "got 8 tensors that are not of the adapter"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj", "o_proj"]}, "4 of it are missing"),
    ],
)
def test_an_adapter_that_does_not_fit_changes_nothing(served, change, why):
    """What it asks for is looked at by names; nothing that it names is imported or read."""
    adapted(served.model, served.root / "good")
    served.push("good", "good", adapter=True)
    before = served.answer()[0]
    adapted(policy(0), served.root / "adapter", 1)
    path = served.root / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}))
    with pytest.raises(WeightsRefusedError, match=why):
        served.push("adapter", "v1", adapter=True)
    scores, version = served.answer()
    assert version == "good"
    assert np.array_equal(scores, before)


def test_numbers_of_an_adapter_have_to_be_finite(served):
    """In the file, and once they are merged: what was there before is there again."""
    adapted(served.model, served.root / "good")
    served.push("good", "good", adapter=True, merged=True)
    before = served.answer()[0]
    path = served.root / "adapter/adapter_model.safetensors"
    for number, value in enumerate((float("nan"), 3e38)):
        adapted(policy(0), served.root / "adapter", 1)
        tensors = load_file(path)
        for tensor in tensors.values():
            tensor.fill_(value)
        save_file(tensors, path)
        with pytest.raises(WeightsRefusedError, match=("not finite", "stay finite")[number]):
            served.push("adapter", "v1", adapter=True, merged=True)
        scores, version = served.answer()
        assert version == "good"
        assert np.array_equal(scores, before)
    served.push("good", "again", adapter=True)
    assert far(served.answer()[0], before) <= AGREEMENT


def test_tied_weights_are_not_merged_into(tmp_path):
    """Beside them an adapter changes one of the two places; merged it would change both."""
    served = Served(policy(0, tied=True), tmp_path)
    adapted(served.model, tmp_path / "adapter", target_modules=["lm_head"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = {name: one for name, one in load_file(path).items() if "lora_" in name}
    save_file(tensors, path)
    with pytest.raises(WeightsRefusedError, match="tied weights"):
        served.push("adapter", "v1", adapter=True, merged=True)
    before = logits_of(policy(0, tied=True))
    served.push("adapter", "v1", adapter=True)
    assert far(served.answer()[0], before) > 100 * AGREEMENT
    served.close()


def test_without_peft_an_adapter_is_refused_in_one_sentence(served, monkeypatch):
    """All weights are taken as before."""
    adapted(served.model, served.root / "adapter")
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(WeightsRefusedError, match="peft is not installed beside the service"):
        served.push("adapter", "v1", adapter=True)
    served.push(served.saved(policy(1), "new"), "v2")
    assert np.array_equal(served.answer()[0], logits_of(policy(1)))


def test_only_a_model_of_transformers_takes_adapters(tmp_path):
    """Others have no configuration to make a copy without memory from."""
    adapted(policy(0), tmp_path / "adapter")
    served = Served(torch.nn.Linear(2, 2), tmp_path)
    with pytest.raises(WeightsRefusedError, match="takes no adapters"):
        served.push("adapter", "v1", adapter=True)
    served.close()


def test_a_policy_with_an_adapter_in_its_directory_keeps_it(tmp_path):
    """Its tensors have other names than those of the model alone."""
    base = policy(0)
    adapted(base, tmp_path / "adapter")
    base.save_pretrained(tmp_path / "base")
    base.load_adapter(str(tmp_path / "adapter"))
    served = Served(base, tmp_path)
    with pytest.raises(WeightsRefusedError, match="expected a directory without adapter_config"):
        served.push("base", "v1")
    served.close()


def test_an_adapter_that_cannot_be_put_back_stops_the_engine(served, monkeypatch):
    """An engine never answers with an adapter that is neither the old one nor the new one."""
    adapted(served.model, served.root / "adapter")
    served.push("adapter", "v1", adapter=True)
    adapted(policy(0), served.root / "second", 1)

    def fail(_adapter):
        raise ValueError("no")

    monkeypatch.setattr(served.live._adapters, "_mount", fail)
    with pytest.raises(EngineStoppedError, match="half-way"):
        served.push("second", "v2", adapter=True)


def test_keys_that_say_nothing_are_left_out():
    """Empty ones of versions to come, those for training, and those that find the model."""
    config = {"peft_type": "LORA", "r": 2, "rank_pattern": None, "to_come": None, "task_type": "X", "lora_dropout": 0.1}
    assert checked_config(config) == {"r": 2}


ENDLESS = "(([a-z0-9_.]+)+)+!"
"""Python's `re` needs longer than anybody lives to see that the name of a layer does not match it."""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_modules": ENDLESS}, None),
        ({"target_modules": "("}, None),
        ({"exclude_modules": ENDLESS}, None),
        ({"layers_to_transform": [0], "layers_pattern": ["layers", ENDLESS]}, None),
        ({"rank_pattern": {ENDLESS: 3}}, "rank_pattern with regular expressions"),
        ({"alpha_pattern": {"q_proj": 2, ENDLESS: 3}}, "alpha_pattern with regular expressions"),
        ({"rank_pattern": [3]}, "rank_pattern with regular expressions"),
    ],
)
def test_no_regular_expression_of_a_caller_is_run(served, changes, words):
    """One that never ends would stop the whole process; layers are those that have tensors."""
    expected = logits_of(adapted(served.model, served.root / "adapter"))
    path = served.root / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    if words is None:
        served.push("adapter", "v1", adapter=True)
        assert np.array_equal(served.answer()[0], expected)
    else:
        with pytest.raises(WeightsRefusedError, match=words):
            served.push("adapter", "v1", adapter=True)


def test_a_tensor_beside_the_layers_of_the_policy_is_refused(served):
    """Where the tensors say which layers there are, one of none is not taken for one."""
    adapted(served.model, served.root / "adapter", target_modules=r".*\.q_proj")
    path = served.root / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(3, 16)
    save_file(tensors, path)
    with pytest.raises(WeightsRefusedError, match="got 1 tensors that are not of the adapter"):
        served.push("adapter", "v1", adapter=True)
