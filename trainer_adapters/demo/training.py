"""One training run: real GRPO with TRL, candidates credited by the service, and the same evaluation for all methods."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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
from plans import ANNEALED_OVER, STOCK, Plan

GROUP = 8
ROLLOUTS = 256
NEW_TOKENS = 3 * task.K + 1
"""K candidates of three tokens, and the end."""
EVALUATED_SETS = 8
"""Sets drawn for each of the held-out prompts."""
WARMUP = 10
EPSILON = 1e-4
"""What TRL and creditd add to a standard deviation."""
REQUEST_DEADLINE_S = 60.0
"""What a request may take, all attempts together: a machine that is busy elsewhere must not end a run."""
AfterStep: TypeAlias = Callable[[LlamaForCausalLM, int], None]
"""What is done with the policy after each step, which has a number."""
OUTAGE_DEADLINE_S = 4.0
"""The same in a run that is going to lose its service."""
END_DEADLINE_S = 5.0
"""What may pass between the loss of the service and the end of the training: the next rollouts, and a request."""


@dataclass(frozen=True)
class Outage:
    """How a run loses its service.

    Attributes:
        pid: The process of the service.
        after_step: The step after which it gets the signal.
        kind: SIGKILL for one that is gone, SIGSTOP for one that hangs.
    """

    pid: int
    after_step: int
    kind: signal.Signals


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
        "annealed_over_steps": ANNEALED_OVER,
        "request_deadline_s": REQUEST_DEADLINE_S,
        "outage_deadline_s": OUTAGE_DEADLINE_S,
        "end_deadline_s": END_DEADLINE_S,
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
    """Evaluates every few steps, writes the request of each step into the trainer's log, and may stop the service."""

    def __init__(
        self,
        evaluation: SetEvaluation | None,
        every: int,
        outage: Outage | None = None,
        after_step: AfterStep | None = None,
    ) -> None:
        self.points: list[dict[str, float]] = []
        self.seconds = 0.0
        self.lost_at: float | None = None
        self.trainer: Any = None
        self._evaluation, self._every, self._outage, self._after_step = evaluation, every, outage, after_step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate the policy that only knows the format."""
        del args, control, kwargs
        self._evaluate(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate; stop the service when that is what this run is for; do what else is wanted after a step."""
        del args, control, kwargs
        if state.global_step % self._every == 0:
            self._evaluate(state.global_step)
        if self._outage and state.global_step == self._outage.after_step:
            self.lost_at = time.perf_counter()
            os.kill(self._outage.pid, self._outage.kind)
        if self._after_step:
            self._after_step(self.trainer.model, state.global_step)

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


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind.

    Attributes:
        record: The curve, and what the trainer logged about time and requests; of a run that lost its service, the
            error that ended it and the seconds from the loss to the end.
        policy: The model.
        log: What the trainer logged, an entry per step.
    """

    record: dict[str, Any]
    policy: LlamaForCausalLM
    log: list[dict[str, Any]]


def train(plan: Plan, url: str, outage: Outage | None = None) -> dict[str, Any]:
    """The record of one run; the arguments are those of `trained`."""
    return trained(plan, url, outage).record


def trained(
    plan: Plan,
    url: str,
    outage: Outage | None = None,
    *,
    reward_model: str | None = None,
    after_step: AfterStep | None = None,
) -> Trained:
    """Run one plan.

    Args:
        plan: What to train.
        url: The service.
        outage: How the run loses its service, or None. Such a run is not evaluated.
        reward_model: Id of the model of the service that scores the candidates, each set by itself. None: the tables
            do, for a hidden type.
        after_step: Done after each step, when it has been evaluated.

    Returns:
        The run.
    """
    torch.set_num_threads(1)
    disable_progress_bars()
    tables = task.Tables()
    policy, lesson_loss = taught_model(plan.seed)
    curve = Curve(None if outage else SetEvaluation(tables), plan.evaluate_every, outage, after_step)
    rewards = Rewards(tables, word_tokenizer(), plan.seed)
    with tempfile.TemporaryDirectory() as scratch:
        deadline_s = OUTAGE_DEADLINE_S if outage else REQUEST_DEADLINE_S
        trainer = _trainer(plan, url, policy, tables, rewards, scratch, deadline_s, reward_model)
        trainer.add_callback(curve)
        trainer.remove_callback(PrinterCallback)
        curve.trainer = trainer
        error: Exception | None = None
        started = time.perf_counter()
        try:
            trainer.train()
        except Exception as caught:
            if not outage:
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
        "train_max_at_k": [round(value, 4) for value in rewards.best],
        "seconds": ended - started,
        "seconds_per_step": (ended - started - curve.seconds) / max(len(log), 1),
        "seconds_in_credit": _total(log, "credit/seconds"),
        "request_ids": [entry["credit/request_id"] for entry in log if "credit/request_id" in entry],
    }
    if error is not None and curve.lost_at is not None:
        record["error"] = f"{type(error).__name__}: {error}"
        record["seconds_to_end"] = ended - curve.lost_at
    return Trained(record, trainer.model, log)


class Rewards:
    """Reward functions as TRL calls them; the types of rollouts are drawn in here, where no policy sees them.

    Attributes:
        best: Mean over the rollouts of each step of the best candidate's reward.
    """

    def __init__(self, tables: task.Tables, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self._tables, self._end = tables, tokenizer.eos_token_id
        self._hidden = task.HiddenTypes(tables, seed)
        self._parser = parser_of(task.PARSER)
        self.best: list[float] = []

    def of_candidates(
        self, prompts: list[str], candidates: list[list[str]], completions: list[str], row: list[int], **columns: object
    ) -> list[list[float]]:
        """One reward per candidate: what creditd's methods learn from."""
        del prompts, completions, columns
        rewards = [
            self._tables.by_type(place, texts)[kind].tolist()
            for place, kind, texts in zip(row, self._hidden.draw(row), candidates, strict=True)
        ]
        self.best.append(math.fsum(_best(given) for given in rewards) / len(rewards))
        return rewards

    def of_format(self, completions: list[str], **columns: object) -> list[float]:
        """1 for K gifts and nothing else, for every method alike."""
        del columns
        return [float(task.well_formed(text)) for text in completions]

    def of_set(
        self, completions: list[str], completion_ids: list[list[int]], row: list[int], **columns: object
    ) -> list[float]:
        """The best of the set, standardised within its group, for the control without creditd."""
        del columns
        sets = [
            list(parse_candidates(text, self._parser, cut_off=ids[-1] != self._end).texts)
            for text, ids in zip(completions, completion_ids, strict=True)
        ]
        return standardised([_best(given) for given in self.of_candidates([], sets, completions, row)])

    def of_format_standardised(self, completions: list[str], **columns: object) -> list[float]:
        """The format's reward, standardised within its group, for the control without creditd."""
        return standardised(self.of_format(completions, **columns))


def standardised(rewards: Sequence[float]) -> list[float]:
    """Rewards of whole groups, less the mean of their group and divided by its deviation, as GRPO has it."""
    groups = torch.tensor(rewards, dtype=torch.float64).reshape(-1, GROUP)
    scaled = (groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + EPSILON)
    return scaled.flatten().tolist()


def _best(rewards: Sequence[float]) -> float:
    """The best of the candidates that play."""
    return max(rewards[: task.K], default=0.0)


def _trainer(
    plan: Plan,
    url: str,
    policy: LlamaForCausalLM,
    tables: task.Tables,
    rewards: Rewards,
    scratch: str,
    deadline_s: float,
    reward_model: str | None,
) -> GRPOTrainer:
    """TRL's trainer with the settings that all methods share.

    The control adds two rewards that are standardised already, and TRL is told to scale nothing: that is the sum which
    creditd takes. TRL's own `normalize_then_sum` whitens the sum over the batch besides, and has no setting without.
    A model reads the candidate right behind the prompt, so that a space ends the prompt there; no token changes by it.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    control = {"scale_rewards": "none"} if plan.method == STOCK else {}
    end_of_prompt = " " if reward_model else ""
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
            **control,
        ),
        "train_dataset": Dataset.from_list(
            [{"prompt": f"{task.PROMPTS[row]}{end_of_prompt}", "row": int(row)} for row in tables.train]
        ),
        "processing_class": word_tokenizer(),
    }
    if plan.method == STOCK:
        return GRPOTrainer(reward_funcs=[rewards.of_set, rewards.of_format_standardised], **shared)
    rule = anneal("shapley", "leave_one_out", steps=ANNEALED_OVER) if plan.method == "annealed" else plan.method
    return CreditGRPOTrainer(
        reward_funcs=[CandidateReward(reward_model or rewards.of_candidates, parser=task.PARSER), rewards.of_format],
        credit=CreditConfig(
            url=url,
            credit=rule,
            candidates=task.K,
            on_failure="raise",
            deadline_s=deadline_s,
            deterministic=reward_model is not None,
        ),
        **shared,
    )


def _total(log: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(sum(entry.get(name, 0.0) for entry in log))
