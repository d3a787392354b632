"""Two processes that gather gradients over two passes, with and without measuring between: python FILE KIND PORT RANK.

Prints by name whether training was the same to the last bit, or nearly, beside what was measured.
"""

import json
import os
import sys
from contextlib import contextmanager

import torch
import torch.distributed as dist

from creditd.engines.in_process import measure_sensitivities
from creditd.engines.policy_protocol import SensitivityOptions
from engines.two_measurers import MOST_TOKENS, agree, items_of, trained, wrapped

OPTIONS = (SensitivityOptions("perturbation", perturbation_id=0), SensitivityOptions("gradient", noise_samples=2))
SYNCED = {"each pass": (True, True), "the last pass": (False, True), "the first pass": (True, False, True)}
"""Which passes of a step bring gradients of both processes together."""


@contextmanager
def apart(model, kind):
    """Gradients stay in their process."""
    if kind != "fsdp2":
        with model.no_sync():
            yield
        return
    model.set_requires_gradient_sync(False)
    yield
    model.set_requires_gradient_sync(True)


def norm(model, kind):
    """Of all gradients."""
    if kind.startswith("fsdp1"):
        return float(model.clip_grad_norm_(1e9))
    total = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    return float(total.full_tensor() if hasattr(total, "full_tensor") else total)


def training(kind, rank, synced, options):
    """Norms of gradients and losses of two steps; sensitivities are measured before every pass."""
    model = wrapped(trained(), kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.arange(3, 43).reshape(2, 20) + 5 * rank
    found = []
    torch.manual_seed(rank)

    def one_pass(number):
        if options is not None:
            measure_sensitivities(model, items_of(rank), options, most_tokens=MOST_TOKENS, agree=agree)
        loss = model(input_ids=tokens + number, labels=tokens + number).loss
        loss.backward()
        return float(loss)

    for _ in range(2):
        optimizer.zero_grad()
        for number, together in enumerate(synced):
            if together:
                found.append(one_pass(number))
            else:
                with apart(model, kind):
                    found.append(one_pass(number))
        found.append(norm(model, kind))
        optimizer.step()
    return found


def main(kind, port, rank):
    """All ways to gather, with both methods and without."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    told = {}
    for name, synced in SYNCED.items():
        plain = training(kind, rank, synced, None)
        assert len(set(plain)) == len(plain)
        for options in OPTIONS:
            told[f"{name}, {options.method}"] = (plain, training(kind, rank, synced, options))
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(told), flush=True)  # noqa: T201 - read by the test
    os._exit(0)  # threads of torch have been seen to keep a process that has ended


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
