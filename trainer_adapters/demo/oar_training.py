"""One training run of the demonstration of OAR: TRL's GRPO, whose advantages the service reshapes."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

import oar_task as task
from creditd.adapters.trl_sensitivity import SensitivityConfig, SensitivityGRPOTrainer
from oar_model import draw, prompt_ids
from oar_plans import BASELINE, DEADLINE_S, MODEL, PARSER, PROBE, Plan

GROUP = 8
ROLLOUTS = 128
WARMUP = 5

LOGGED = {
    "reward": "reward",
    "entropy": "entropy",
    "zero_std": "frac_reward_zero_std",
    "effective_share": "credit/effective_share",
    "top_share": "credit/top_share",
    "spread": "credit/spread",
    "answer_not_found": "credit/answer_not_found",
    "without_contrast": "credit/without_contrast",
    "flat": "credit/flat",
    "credit_s": "credit/seconds",
    "push_s": "credit/push_seconds",
    "push_bytes": "credit/push_bytes",
    "pushes": "credit/pushes",
}
"""What is kept of the trainer's log of each step: our name, and its. What a step did not log is None: weights of a step
whose groups all have no contrast, for which nobody is asked."""


def settings() -> dict[str, Any]:
    """What all runs share, for the results."""
    return {
        "prompts_per_step": ROLLOUTS // GROUP,
        "rollouts_per_prompt": GROUP,
        "new_tokens": task.WRITTEN,
        "reasoning_tokens": task.REASONING,
        "evaluated_problems": task.HELD_OUT,
        "warmup_steps": WARMUP,
        "request_deadline_s": DEADLINE_S,
        "optimizer": "TRL's defaults: loss dapo, beta 0, AdamW, gradient norm at most 1; a step per batch of rollouts",
    }


class Evaluation:
    """Accuracy and entropy of a policy on the held-out problems; the same random numbers every time."""

    def __init__(self) -> None:
        _, held_out = task.problems()
        self._rows = held_out.tolist()
        self._prompts = prompt_ids(self._rows)

    def __call__(self, policy: LlamaForCausalLM) -> dict[str, float]:
        """Of completions drawn at temperature 1: accuracy, the share of the form taught, and entropy per token."""
        policy.eval()
        drawn = draw(policy, self._prompts, torch.Generator().manual_seed(0))
        policy.train()
        entropy = [row[: len(words)].mean() for row, words in zip(drawn.entropy, drawn.words, strict=True)]
        return {
            "accuracy": self._accuracy(drawn.words),
            "well_formed": float(np.mean([task.is_well_formed(words) for words in drawn.words])),
            "entropy": float(torch.stack(entropy).mean()),
        }

    def greedy(self, policy: LlamaForCausalLM) -> float:
        """Accuracy of the most probable tokens."""
        policy.eval()
        return self._accuracy(draw(policy, self._prompts, None).words)

    def _accuracy(self, words: list[list[str]]) -> float:
        return float(np.mean([task.is_right(one, *row) for one, row in zip(words, self._rows, strict=True)]))


class Curve(TrainerCallback):
    """Evaluates every few steps, and keeps what the clock and the processors say when it does, evaluations left out."""

    def __init__(self, evaluation: Evaluation, every: int, processor_seconds: Callable[[], float]) -> None:
        self.points: list[dict[str, float]] = []
        self.policy: LlamaForCausalLM | None = None
        self._evaluation, self._every, self._processor = evaluation, every, processor_seconds
        self._clock = self._used = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate the checkpoint."""
        del args, control, kwargs
        self._clock, self._used = time.perf_counter(), self._processor()
        self._evaluate(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate now and then."""
        del args, control, kwargs
        if state.global_step % self._every == 0:
            self._evaluate(state.global_step)

    def _evaluate(self, step: int) -> None:
        clock, used = time.perf_counter(), self._processor()
        if self.policy is None:
            raise RuntimeError("got no policy; expected the one that is trained")
        self.points.append(
            {
                "step": step,
                "seconds": clock - self._clock,
                "processor_seconds": used - self._used,
                **self._evaluation(self.policy),
            }
        )
        self._clock += time.perf_counter() - clock
        self._used += self._processor() - used


class Warnings(logging.Handler):
    """Counts what creditd's adapter warns of, which in a run without an outage is nothing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.messages.append(record.getMessage())


def nothing() -> float:
    """The processor time of a service that is not asked for it."""
    return 0.0


def train(plan: Plan, checkpoint: Path, url: str, service_seconds: Callable[[], float]) -> dict[str, Any]:
    """Run one plan.

    Args:
        plan: What to train.
        checkpoint: The policy that every training starts from.
        url: The service whose policy gets the weights; plain GRPO never asks it.
        service_seconds: Processor time of the service up to now.

    Returns:
        The record: the curve, and what was logged about rewards, weights, time and requests.
    """
    torch.set_num_threads(1)
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    policy = LlamaForCausalLM.from_pretrained(checkpoint)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    evaluation = Evaluation()
    curve = Curve(evaluation, plan.evaluate_every, lambda: time.process_time() + service_seconds())
    curve.policy = policy
    heard = Warnings()
    logging.getLogger("creditd").addHandler(heard)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            trainer = _trainer(plan, policy, tokenizer, url, scratch)
            trainer.add_callback(curve)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
    finally:
        logging.getLogger("creditd").removeHandler(heard)
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    end = curve.points[-1]
    return {
        "method": plan.method,
        "rate": plan.rate,
        "seed": plan.seed,
        "steps": len(log),
        "curve": curve.points,
        "greedy": evaluation.greedy(policy),
        "seconds": end["seconds"],
        "processor_seconds": end["processor_seconds"],
        "by_step": {
            name: [entry.get(theirs) for entry in log]
            for name, theirs in LOGGED.items()
            if any(theirs in entry for entry in log)
        },
        "warnings": heard.messages,
        "request_ids": list(getattr(trainer, "sensitivity_request_ids", [])),
    }


def rewards(
    completion_ids: list[list[int]], number: list[int], multiplier: list[int], **columns: object
) -> list[float]:
    """1 for the product, 0 for anything else; a reward function as TRL calls it."""
    del columns
    return [
        float(task.is_right([task.VOCABULARY[token] for token in ids], *row))
        for ids, *row in zip(completion_ids, number, multiplier, strict=True)
    ]


def _trainer(
    plan: Plan, policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, url: str, scratch: str
) -> GRPOTrainer:
    """TRL's trainer with the settings that all methods share."""
    rows, _ = task.problems()
    shared: Mapping[str, Any] = {
        "model": policy,
        "reward_funcs": [rewards],
        "args": GRPOConfig(
            output_dir=scratch,
            learning_rate=plan.rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=WARMUP,
            max_steps=plan.steps,
            per_device_train_batch_size=ROLLOUTS,
            num_generations=GROUP,
            max_completion_length=task.WRITTEN,
            seed=plan.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        "train_dataset": Dataset.from_list(
            [{"prompt": task.prompt(*row), "number": row[0], "multiplier": row[1]} for row in rows.tolist()]
        ),
        "processing_class": tokenizer,
    }
    if plan.method == BASELINE:
        return GRPOTrainer(**shared)
    return SensitivityGRPOTrainer(
        sensitivity=SensitivityConfig(
            parser=PARSER,
            model=MODEL,
            url=url,
            sensitivity=plan.method,
            probe=PROBE,
            deadline_s=DEADLINE_S,
            push_deadline_s=DEADLINE_S,
            max_credit_share=None,
        ),
        **shared,
    )
