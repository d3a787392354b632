"""Credit in verl by configuration alone: a sampler that asks once per training batch, and estimators by name.

    algorithm.adv_estimator=creditd_shapley
    trainer.v1.sampler.custom_sampler.path=pkg://creditd.adapters.verl
    trainer.v1.sampler.custom_sampler.name=CreditReplayBuffer
    +trainer.v1.sampler.sampler_kwargs.reward=pkg://my_rewards:score
    +trainer.v1.sampler.sampler_kwargs.parser.type=numbered

VERL.md has every key. Asynchronous modes take `CreditReplayBufferAsync`. What the sampler finds is kept by the key of
each row and laid over what verl computes; with `kind=span_rewards` it is written into the queue as token rewards
instead, for verl's own GAE. Tested with verl 0.9.1, trainer v1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict

from creditd.adapters.step_share import StepShare
from creditd.adapters.verl_askers import Asker, TokenNumbers, asker_of
from creditd.adapters.verl_checks import check_trainer
from creditd.adapters.verl_estimators import register
from creditd.adapters.verl_overlay import OVERLAY, install
from creditd.adapters.verl_rows import VerlBatch
from creditd.adapters.verl_seams import moved, seam, takes
from creditd.adapters.verl_settings import settings_of

__all__ = ["CreditReplayBuffer", "CreditReplayBufferAsync", "CreditSampler"]

_BUFFERS = "verl.trainer.ppo.v1.replay_buffer"
_SAMPLED = ("global_steps", "partition_id", "batch_size")
_ReplayBuffer: Any = seam(_BUFFERS, "ReplayBuffer")
_ReplayBufferAsync: Any = seam(_BUFFERS, "ReplayBufferAsync")
takes(_ReplayBuffer.sample, _SAMPLED)
takes(_ReplayBufferAsync.sample, _SAMPLED)

log = logging.getLogger("creditd.adapters.verl")


class CreditSampler:
    """Stands before a replay buffer of verl, and asks creditd about each training batch that it samples.

    Args:
        sampler_kwargs: The keys of VERL.md.
        refill_fn: The trainer's own method; the trainer is known by it.
        options: What verl hands to every replay buffer.

    Raises:
        ValueError: If keys are unknown, contradict each other or the trainer's own configuration, or would lose credit.
        SeamMovedError: If verl is one that the adapter does not know.
    """

    modes_of_verl: tuple[str, ...] = ()

    def __init__(self, *, sampler_kwargs: Any, refill_fn: Any = None, **options: Any) -> None:
        plain: Any = (
            OmegaConf.to_container(sampler_kwargs, resolve=True) if OmegaConf.is_config(sampler_kwargs) else None
        )
        settings = settings_of(plain if isinstance(plain, Mapping) else dict(sampler_kwargs or {}))
        self._trainer = getattr(refill_fn, "__self__", None)
        trainer_config = getattr(self._trainer, "config", None)
        if trainer_config is not None:
            options |= check_trainer(trainer_config, settings.common)
        if options.get("trainer_mode") not in self.modes_of_verl:
            raise ValueError(
                f"got {type(self).__name__} with trainer.v1.trainer_mode={options.get('trainer_mode')}; expected one "
                "of "
                f"{', '.join(self.modes_of_verl)} here: CreditReplayBuffer is for sync, CreditReplayBufferAsync for "
                "others"
            )
        parent: Any = super()
        parent.__init__(sampler_kwargs=sampler_kwargs, refill_fn=refill_fn, **options)
        group_size = settings.common.group_size or _of(trainer_config, "rollout.n", "group_size")
        longest = settings.common.longest or _of(trainer_config, "rollout.response_length", "longest")
        self._asker: Asker = asker_of(settings, group_size, longest, trainer_config)
        self._common = settings.common
        self._is_read = False
        self._credit_share = StepShare(
            self._asker.max_credit_share,
            "a service nearer to the trainer helps, and sampler_kwargs.max_credit_share changes when this is said",
        )
        register()
        if not self._asker.writes_rewards:
            install()

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, dict[str, Any]]:
        """A batch of verl, about whose tokens creditd was asked if it is one to train on."""
        parent: Any = super()
        meta, metrics = parent.sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        if partition_id != "train" or not meta.keys:
            return meta, metrics
        if not self._is_read:
            self._asker.read_by(self._tokenizer())
            self._is_read = True
        OVERLAY.keep({})  # whatever goes wrong now, nothing old is laid over
        started = time.perf_counter()
        batch = self._batch(meta)
        found = self._asker.ask(batch, global_steps - 1)
        _check_lengths(batch, found)
        if self._asker.writes_rewards:
            _write_rewards(meta, found)
        else:
            OVERLAY.keep(found.rows)
        if found.request_id is not None:
            log.info("step %d: credit of request %s", global_steps, found.request_id)
        return meta, metrics | found.metrics | self._credit_share.of_step(time.perf_counter() - started)

    def _tokenizer(self) -> Any:
        """Of the policy."""
        if self._common.tokenizer is not None:
            from transformers import AutoTokenizer  # noqa: PLC0415 - verl's own is there without it

            return AutoTokenizer.from_pretrained(self._common.tokenizer)
        tokenizer = getattr(self._trainer, "tokenizer", None)
        if tokenizer is None:
            raise moved(
                "PPOTrainer.tokenizer",
                "which is not there when the first batch is sampled (sampler_kwargs.tokenizer names one)",
            )
        return tokenizer

    def _batch(self, meta: Any) -> VerlBatch:
        """What the queue holds of the rows, as lists."""
        asker = self._asker
        fields = ["prompts", "responses", "response_mask"]
        fields += ["raw_prompt"] if asker.reads_prompts else []
        fields += ["rm_scores"] if asker.reads_rewards else []
        fields += [name for name in asker.columns if name not in fields]
        data = tq.kv_batch_get(keys=meta.keys, partition_id=meta.partition_id, select_fields=fields)
        absent = [name for name in fields if name not in data.keys()]  # noqa: SIM118 - a TensorDict iterates over rows
        if absent:
            raise ValueError(
                f"got rows without {absent[0]} in the queue; expected it of the agent loop, the reward or the data set"
            )
        return VerlBatch(
            keys=list(meta.keys),
            prompts=_listed(data["raw_prompt"]) if asker.reads_prompts else [None] * len(meta.keys),
            prompt_ids=_tokens(data["prompts"]),
            ids=_tokens(data["responses"]),
            masks=_tokens(data["response_mask"]),
            rewards=[float(row.sum()) for row in data["rm_scores"].unbind()] if asker.reads_rewards else [],
            columns={name: _listed(data[name]) for name in asker.columns},
        )


class CreditReplayBuffer(CreditSampler, _ReplayBuffer):
    """The sampler of `trainer.v1.trainer_mode=sync`."""

    modes_of_verl = ("sync",)


class CreditReplayBufferAsync(CreditSampler, _ReplayBufferAsync):
    """The sampler of asynchronous modes."""

    modes_of_verl = ("colocate_async", "separate_async")


def _of(config: Any, path: str, key: str) -> int:
    """A number of the trainer's own configuration."""
    if config is None:
        raise ValueError(
            f"got no {key} and no trainer behind refill_fn; expected sampler_kwargs.group_size, .longest and .tokenizer"
        )
    found = OmegaConf.select(config, f"actor_rollout_ref.{path}")
    if not isinstance(found, int) or isinstance(found, bool):
        raise moved(f"actor_rollout_ref.{path}", f"which is {found!r} and no number (sampler_kwargs.{key} says it too)")
    return found


def _tokens(column: Any) -> list[list[int]]:
    """Rows of whole numbers of a ragged or a plain tensor."""
    return [[int(value) for value in row.tolist()] for row in column.unbind()]


def _listed(column: Any) -> list[Any]:
    """Values that are no numbers, one per row, without what TransferQueue wraps them in."""
    return [getattr(value, "data", value) if type(value).__name__ == "NonTensorData" else value for value in column]


def _check_lengths(batch: VerlBatch, found: TokenNumbers) -> None:
    """One number per token of every row."""
    for key, ids in zip(batch.keys, batch.ids, strict=True):
        if len(found.rows[key]) != len(ids):
            raise ValueError(
                f"row {key}: got {len(found.rows[key])} numbers; expected {len(ids)}, one per response token"
            )


def _write_rewards(meta: Any, found: TokenNumbers) -> None:
    """Put rewards of tokens where the trainer looks for them."""
    rows: Sequence[Any] = [torch.tensor(found.rows[key], dtype=torch.float32) for key in meta.keys]
    fields = TensorDict({"rm_scores": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, batch_size=[len(rows)])
    tq.kv_batch_put(keys=list(meta.keys), partition_id=meta.partition_id, fields=fields)
