"""Two processes with one model and unequal work, as trainers start them: `python two_measurers.py KIND PORT RANK`.

Prints what each measured of its own items, and that a step of training works afterwards.
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from creditd.engines.in_process import measure_sensitivities
from creditd.engines.policy_protocol import SensitivityOptions
from engines.policies import item_of

MOST_TOKENS = 128
OPTIONS = (
    SensitivityOptions("perturbation", perturbation_id=0),
    SensitivityOptions("gradient", noise_samples=2),
    SensitivityOptions("gradient", "answer_joint"),
)


def trained():
    """A model that nobody wrapped yet, in training, with dropout that would show."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, tie_word_embeddings=False,
        attention_dropout=0.5,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def items_of(rank):
    """One short completion of the first process, six of the second, of other lengths."""
    return [item_of(10 * rank + number, reasoning=12 + 9 * number) for number in range(1 + 5 * rank)]


def wrapped(model, kind):
    """A model as trainers have it."""
    if kind == "ddp":
        return torch.nn.parallel.DistributedDataParallel(model)
    if kind.startswith("fsdp2"):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16) if kind.endswith("bfloat16") else None
        more = {"mesh": init_device_mesh("cpu", (2,))} | ({"mp_policy": policy} if policy else {})
        for layer in model.model.layers:
            fully_shard(layer, **more)
        return fully_shard(model, **more)
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({Qwen3DecoderLayer}),
        use_orig_params=kind == "fsdp1 with parameters",
        device_id=torch.device("cpu"),
    )


def agree(count):
    """The largest of both."""
    most = torch.tensor([count])
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


def main(kind, port, rank):
    """Measure, train a step, and measure again."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = wrapped(trained(), kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    asking = [one.requires_grad for one in model.parameters()]
    found, refused = [], []
    for _ in range(2):
        for options in OPTIONS:
            before = torch.get_rng_state()
            try:
                measured = measure_sensitivities(model, items_of(rank), options, most_tokens=MOST_TOKENS, agree=agree)
            except ValueError as error:
                refused.append(str(error))
                continue
            assert torch.equal(torch.get_rng_state(), before)
            assert all(one.grad is None for one in model.parameters())
            assert all(module.training for module in model.modules())
            assert [one.requires_grad for one in model.parameters()] == asking
            found.append([one.sensitivities.tolist() for one in measured])
        if not refused:
            tokens = torch.arange(3, 43).reshape(2, 20)
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps({"found": found, "refused": refused}), flush=True)  # noqa: T201 - read by the test
    os._exit(0)  # threads of torch have been seen to keep a process that has ended


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
