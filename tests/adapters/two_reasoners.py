"""Two gloo processes that train with reshaped advantages; run by torch.distributed.run.

Usage: two_reasoners.py FOLDER URL
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from adapters.reshaping import ANSWERED, NOBODY, closing, reshaping
from adapters.two_processes import outcome

LONG = [["one", "two", "three", "four", "six", "####", "one", "<eos>"], ["one", "####", "two", "<eos>"]]
"""What the first process writes takes more passes than what the second writes."""
OWN = {"in_process": True, "model": None}


def main(folder: Path, url: str) -> None:
    """Train with a service, without it, and by the own model; write down what came of each."""

    def run(name, *, address=NOBODY, completions=ANSWERED[:2], **options):
        def make():
            settings = {"per_device_train_batch_size": 2, "max_steps": 2} | options
            return reshaping(folder / f"out {name}", address, completions=completions, **settings)

        return make

    cases = {
        "served": run("served", address=url, record=str(folder / "wire")),
        "raise": run("raise", deadline_s=0.3, push_deadline_s=0.3),
        "group_reward": run("plain", deadline_s=0.3, push_deadline_s=0.3, on_failure="group_reward"),
    }
    for method in ("gradient", "perturbation"):
        cases[method] = run(method, sensitivity=method, most_tokens=16, **OWN)
    cases["deadline"] = run("deadline", deadline_s=1.0, push_deadline_s=61.0, ddp_timeout=60)
    outcomes = {}
    with closing():
        for name, make in cases.items():
            torch.manual_seed(0)
            outcomes[name] = outcome(make)
        rank = PartialState().process_index
        for method in ("gradient", "perturbation"):  # processes that have unequally much to do
            unequal = run(
                f"unequal {method}",
                completions=LONG if rank == 0 else LONG[1:],
                sensitivity=method,
                most_tokens=16,
                **OWN,
            )
            torch.manual_seed(0)
            outcomes[f"unequal {method}"] = outcome(unequal)
        last = run("last", on_failure="group_reward")()
        (folder / f"rank{rank}.json").write_text(json.dumps(outcomes))
        # A process that leaves while the other still talks makes that one abort.
        last.accelerator.wait_for_everyone()
        last.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
