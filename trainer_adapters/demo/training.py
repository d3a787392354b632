"""One training run: real GRPO with TRL, candidates credited by the service, and the same evaluation for all methods."""

from __future__ import annotations

import os
import signal
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from trl import GRPOConfig, GRPOTrainer

import task
from creditd.adapters.trl import CandidateReward, CreditConfig, CreditGRPOTrainer, anneal
from creditd.credit import parse_candidates, parser_of
from model import new_model, taught_model, word_tokenizer

GROUP = 8
ROLLOUTS = 256
NEW_TOKENS = 3 * task.K + 1
"""K candidates of three tokens, and the end."""
EVALUATED_SETS = 8
"""Sets drawn for each of the held-out prompts."""
WARMUP = 10
DEADLINE_S = 5.0

RULES = {
    "set_reward": "set-level GRPO",
    "own_reward": "own reward",
    "shapley": "Shapley",
    "leave_one_out": "leave-one-out",
    "annealed": "Shapley → leave-one-out",
    "prefix_gain": "prefix gain",
}
"""Methods by the name of their rule on the wire; `annealed` moves from one rule to the other over half of the run."""
STOCK = "stock"
"""The control: TRL's own GRPOTrainer with the set's reward, and no creditd anywhere."""


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        method: A key of `RULES`, or `STOCK`.
        rate: Learning rate.
        seed: Of the weights, the lessons, the order of prompts, the sampling and the hidden types.
        steps: Optimizer steps; each has its own 256 rollouts.
        evaluate_every: Steps between evaluations.
    """

    method: str
    rate: float
    seed: int
    steps: int
    evaluate_every: int

    @property
    def name(self) -> str:
        """Key of the run in the results."""
        return f"{self.method} rate {self.rate:g} seed {self.seed} steps {self.steps}"


def settings() -> dict[str, Any]:
    """What all runs share, for the results."""
    return {
        "prompts_per_step": ROLLOUTS // GROUP,
        "rollouts_per_prompt": GROUP,
        "new_tokens": NEW_TOKENS,
        "vocabulary": len(task.VOCABULARY),
        "weights": sum(weight.numel() for weight in new_model(0).parameters()),
        "warmup_steps": WARMUP,
        "evaluated_sets": EVALUATED_SETS * task.HELD_OUT,
        "deadline_s": DEADLINE_S,
        "optimizer": "TRL's defaults: loss dapo, beta 0, AdamW, gradient norm at most 1; a step per batch of rollouts",
    }


class SetEvaluation:
    """Quality of the sets that a policy writes for the held-out prompts; the same random numbers every time."""

    def __init__(self, tables: task.Tables) -> None:
        self._tokenizer, self._tables = word_tokenizer(), tables
        self._rows = [int(row) for row in tables.held_out for _ in range(EVALUATED_SETS)]
        self._prompts = self._tokenizer([task.PROMPTS[row] for row in self._rows], return_tensors="pt")
        self._parser = parser_of(task.PARSER)

    def __call__(self, policy: LlamaForCausalLM) -> dict[str, float]:
        """Expectations over the hidden type are exact; those over the policy are means of the drawn sets."""
        policy.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            drawn = policy.generate(
                **self._prompts,
                max_new_tokens=NEW_TOKENS,
                do_sample=True,
                top_k=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        policy.train()
        ids = drawn.sequences[:, self._prompts["input_ids"].shape[1] :]
        ended = (ids == self._tokenizer.eos_token_id).long()
        written = (ended.cumsum(dim=1) - ended) == 0
        logs = torch.stack(drawn.logits, dim=1).log_softmax(dim=-1)
        entropy = (-(logs.exp() * logs).sum(dim=-1) * written).sum(dim=1)
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        sets = [
            parse_candidates(text, self._parser, cut_off=not done).texts
            for text, done in zip(texts, ended.any(dim=1).tolist(), strict=True)
        ]
        values = np.array([self._tables.value(row, found) for row, found in zip(self._rows, sets, strict=True)])
        return {
            "max_at_k": float(values[:, 0].mean()),
            "mean_reward": float(values[:, 1].mean()),
            "well_formed": float(np.mean([task.well_formed(text) for text in texts])),
            "distinct": float(np.mean([len(set(found[: task.K])) for found in sets])),
            "entropy": float(entropy.mean()),
        }


class Curve(TrainerCallback):
    """Evaluates every few steps, writes the request of each step into the trainer's log, and may end the service."""

    def __init__(self, evaluation: SetEvaluation | None, every: int, kill: tuple[int, int] | None) -> None:
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0
        self.killed_at: float | None = None
        self.trainer: Any = None
        self._evaluation, self._every, self._kill = evaluation, every, kill

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate the policy that only knows the format."""
        del args, control, kwargs
        self._evaluate(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate; end the service when that is what this run is for."""
        del args, control, kwargs
        if state.global_step % self._every == 0:
            self._evaluate(state.global_step)
        if self._kill and state.global_step == self._kill[1]:
            os.kill(self._kill[0], signal.SIGKILL)
            self.killed_at = time.perf_counter()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Name the request beside the numbers that came of it."""
        del args, control, kwargs
        requests = getattr(self.trainer, "credit_request_ids", None)
        if requests:
            state.log_history[-1]["credit/request_id"] = requests[-1]

    def _evaluate(self, step: int) -> None:
        if self._evaluation is not None:
            started = time.perf_counter()
            self.points.append({"step": step, **self._evaluation(self.trainer.model)})
            self.seconds += time.perf_counter() - started


def train(plan: Plan, url: str, *, kill: tuple[int, int] | None = None) -> dict[str, Any]:
    """Run one plan.

    Args:
        plan: What to train.
        url: The service.
        kill: Process id of the service and the step after which it is killed, or None. Such a run is not evaluated.

    Returns:
        The curve, and what the trainer logged about time and requests; of a run whose service was killed, the error
        that ended it and the seconds from the kill to the end.
    """
    torch.set_num_threads(1)
    disable_progress_bars()
    tables = task.Tables()
    policy, lesson_loss = taught_model(plan.seed)
    curve = Curve(None if kill else SetEvaluation(tables), plan.evaluate_every, kill)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(plan, url, policy, tables, scratch)
        trainer.add_callback(curve)
        trainer.remove_callback(PrinterCallback)
        curve.trainer = trainer
        error: Exception | None = None
        started = time.perf_counter()
        try:
            trainer.train()
        except Exception as caught:
            if not kill:
                raise
            error = caught
        ended = time.perf_counter()
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    record: dict[str, Any] = {
        "method": plan.method,
        "rate": plan.rate,
        "seed": plan.seed,
        "steps": len(log),
        "lesson_loss": lesson_loss,
        "curve": curve.points,
        "train_reward": [round(float(entry["reward"]), 4) for entry in log],
        "seconds": ended - started,
        "seconds_per_step": (ended - started - curve.seconds) / max(len(log), 1),
        "seconds_in_credit": _total(log, "credit/seconds"),
        "request_ids": [entry["credit/request_id"] for entry in log if "credit/request_id" in entry],
    }
    if error is not None and curve.killed_at is not None:
        record["error"] = f"{type(error).__name__}: {error}"
        record["seconds_from_kill_to_end"] = ended - curve.killed_at
    return record


class Rewards:
    """Reward functions as TRL calls them; the types of rollouts are drawn in here, where no policy sees them."""

    def __init__(self, tables: task.Tables, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tables, self._end = tables, tokenizer.eos_token_id
        self._hidden = task.HiddenTypes(tables, seed)
        self._parser = parser_of(task.PARSER)

    def of_candidates(
        self, prompts: list[str], candidates: list[list[str]], completions: list[str], row: list[int], **columns: object
    ) -> list[list[float]]:
        """One reward per candidate: what creditd's methods learn from."""
        del prompts, completions, columns
        return [
            self._tables.by_type(place, texts)[kind].tolist()
            for place, kind, texts in zip(row, self._hidden.draw(row), candidates, strict=True)
        ]

    def of_format(self, completions: list[str], **columns: object) -> list[float]:
        """1 for K gifts and nothing else, for every method alike."""
        del columns
        return [float(task.well_formed(text)) for text in completions]

    def of_set(
        self, completions: list[str], completion_ids: list[list[int]], row: list[int], **columns: object
    ) -> list[float]:
        """The best of the set, for the control without creditd."""
        del columns
        sets = [
            list(parse_candidates(text, self._parser, cut_off=ids[-1] != self._end).texts)
            for text, ids in zip(completions, completion_ids, strict=True)
        ]
        scored = self.of_candidates([], sets, completions, row)
        return [max(rewards[: task.K], default=0.0) for rewards in scored]


def _trainer(plan: Plan, url: str, policy: LlamaForCausalLM, tables: task.Tables, scratch: str) -> GRPOTrainer:
    """TRL's trainer with the settings that all methods share."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    tokenizer = word_tokenizer()
    rewards = Rewards(tables, tokenizer, plan.seed)

    shared: Mapping[str, Any] = {
        "model": policy,
        "args": GRPOConfig(
            output_dir=scratch,
            learning_rate=plan.rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=WARMUP,
            max_steps=plan.steps,
            per_device_train_batch_size=ROLLOUTS,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            seed=plan.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            multi_objective_aggregation="normalize_then_sum",
        ),
        "train_dataset": Dataset.from_list([{"prompt": task.PROMPTS[row], "row": int(row)} for row in tables.train]),
        "processing_class": tokenizer,
    }
    if plan.method == STOCK:
        return GRPOTrainer(reward_funcs=[rewards.of_set, rewards.of_format], **shared)
    rule = anneal("shapley", "leave_one_out", steps=plan.steps // 2) if plan.method == "annealed" else plan.method
    return CreditGRPOTrainer(
        reward_funcs=[CandidateReward(rewards.of_candidates, parser=task.PARSER), rewards.of_format],
        credit=CreditConfig(url=url, credit=rule, candidates=task.K, on_failure="raise", deadline_s=DEADLINE_S),
        **shared,
    )


def _total(log: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(entry.get(name, 0.0) for entry in log))
