"""One of two processes that train together, each with half of every group; started by torchrun from a test."""

import json
import sys
import time
from pathlib import Path

import torch
from trl import GRPOTrainer

from adapters.model_service import judged, worth
from adapters.trainers import PARSER, Watch, length, scripted, trainer_of
from creditd.adapters.trl import CandidateReward, CreditConfig, SpanReward, attach

NOBODY = "http://127.0.0.1:9"
"""An address at which nothing listens."""


def forgotten(step):
    """A schedule with a fault."""
    return 1 // (step - 1) and "shapley"


class Flipped(GRPOTrainer):
    """A trainer that reorders its rows in the second process only."""

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        if self.accelerator.process_index == 0:
            return out
        return {key: value.flip(0) if getattr(value, "ndim", 0) else value for key, value in out.items()}


def outcome(make):
    """What a run came to: the error and its cause, its seconds, its last log entry and the advantages it used."""
    started = time.monotonic()
    error = None
    trainer, watch = None, None
    try:
        trainer = make()
        watch = Watch(trainer)
        trainer.train()
    except Exception as caught:  # noqa: BLE001 - the test looks at it
        error = caught
    entries = [] if trainer is None else [one for one in trainer.state.log_history if "credit/errors" in one]
    return {
        "error": None if error is None else f"{type(error).__name__}: {error}",
        "cause": None if error is None else type(error.__cause__).__name__,
        "seconds": time.monotonic() - started,
        "log": entries[-1] if entries else None,
        "advantages": [] if watch is None else [advantages.tolist() for _, _, advantages in watch.generated],
        "masks": [] if watch is None else [mask.tolist() for _, mask, _ in watch.generated],
        "request_ids": [] if trainer is None else getattr(trainer, "credit_request_ids", []),
    }


def candidates_worth(prompts, candidates, *_, **__):
    """What the model of the service says, as a function."""
    return [[worth(prompt, text) for text in row] for prompt, row in zip(prompts, candidates, strict=True)]


SCORED: list[int] = []
"""How many texts each call of the function had, in this process."""


def scored(prompts, texts):
    """What the model of the service says of whole completions, as a function."""
    SCORED.append(len(texts))
    return [judged(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def spans(reward, **options):
    """A configuration and the rewards of a run on spans."""
    config = {"url": "local:"} | options
    return {"rewards": [SpanReward(reward, name="spans"), length], "credit": CreditConfig(**config)}


def main(folder: Path, url: str) -> None:
    """Train with credit, without it under each failure policy, and with faults; write down what came of each."""

    def run(**options):
        return lambda: trainer_of(folder, **({"per_device_train_batch_size": 2, "max_steps": 2} | options))

    def reordered():
        completions = [["one", "<eos>"], ["two", ";", "three", "<eos>"]]
        trainer = run(kind=Flipped, max_steps=1, rollout_func=scripted(completions))()
        return attach(trainer, CreditConfig(url="local:"))

    cases = {"sound": run(credit=CreditConfig(url="local:", record=str(folder / "wire")))}
    for policy in ("raise", "group_reward", "mask", "local"):
        cases[policy] = run(credit=CreditConfig(url=NOBODY, on_failure=policy, deadline_s=0.3))
    for name, reward in (("model", "rm"), ("function", candidates_worth)):
        rewards = [CandidateReward(reward, parser=PARSER, name="candidates"), length]
        cases[name] = run(rewards=rewards, credit=CreditConfig(url=url, record=str(folder / name)))
    for policy in ("raise", "mask"):
        rewards = [CandidateReward("rm", parser=PARSER), length]
        cases[f"model, {policy}"] = run(
            rewards=rewards, credit=CreditConfig(url=NOBODY, on_failure=policy, deadline_s=0.3)
        )
    cases["spans by model"] = run(**spans("judged", url=url, record=str(folder / "spans")))
    cases["spans by function"] = run(**spans(scored))
    cases["spans, raise"] = run(**spans("judged", url=NOBODY, deadline_s=0.3))
    for policy in ("group_reward", "mask", "local"):
        cases[f"spans, {policy}"] = run(**spans(scored, url=NOBODY, deadline_s=0.3, on_failure=policy))
    cases["spans, lost model"] = run(**spans("judged", url=NOBODY, deadline_s=0.3, on_failure="group_reward"))
    cases["schedule"] = run(credit=CreditConfig(url="local:", credit=forgotten))
    cases["reordered"] = reordered
    cases["deadline"] = run(credit=CreditConfig(url="local:", deadline_s=61.0), ddp_timeout=60)
    outcomes = {}
    for name, make in cases.items():
        torch.manual_seed(0)
        SCORED.clear()
        outcomes[name] = outcome(make) | {"scored": len(SCORED)}
    last = run(credit=CreditConfig(url="local:"))()
    rank = last.accelerator.process_index
    (folder / f"rank{rank}.json").write_text(json.dumps(outcomes))
    # A process that leaves while the other still talks makes that one abort.
    last.accelerator.wait_for_everyone()
    last.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
