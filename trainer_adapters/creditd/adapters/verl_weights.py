"""The checkpoints of verl as the weights that a service is given.

The weights of verl's actor are in worker groups, and its trainer's process has none of them. A checkpoint that verl
writes with `hf_model` is one that a service can read (`checkpoint_weights`). That it is whole, and of which step it is,
the trainer's process says: it writes `latest_checkpointed_iteration.txt` below `trainer.default_local_dir` when all
workers have written theirs. Nothing of verl or torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from creditd.adapters import checkpoint_weights
from creditd.adapters.checkpoint_weights import STEP, Answering, CheckpointKeys, Words
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.client import Client

TRACKER = "latest_checkpointed_iteration.txt"
"""What verl calls the file that names the step of its last checkpoint."""

_WRITTEN_BY = "trainer.save_freq and hf_model in actor_rollout_ref.actor.checkpoint.save_contents"


class Tracker:
    """The step of the checkpoint that this run wrote last, by the file that verl's trainer writes behind each.

    What was in the folder before counts for nothing: it may be of another run.

    Args:
        folder: `trainer.default_local_dir`, as the trainer's process sees it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.file = self.folder / TRACKER
        self.words = Words("verl", str(self.file), _WRITTEN_BY, "sampler_kwargs.initial_weights")
        self._before = self._seen()

    def written(self) -> int | None:
        """The step, or None if this run wrote no checkpoint yet.

        Raises:
            ValueError: If the file does not hold a step.
        """
        seen = self._seen()
        if seen is None or seen == self._before:
            return None
        text = seen[1].strip()
        if not text.isdecimal():
            raise ValueError(f"got {text[:40]!r} in {self.file}; expected the step of a checkpoint of verl")
        return int(text)

    def _seen(self) -> tuple[int, str] | None:
        """When the file was written, and what is in it."""
        try:
            return self.file.stat().st_mtime_ns, self.file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


def weights_of(
    given: Mapping[str, Any],
    config: SensitivityConfig,
    client: Client,
    trainer: Any,  # noqa: ANN401 - a DictConfig
) -> Answering:
    """Which weights answer, by the keys.

    Args:
        given: Keys of `kind=sensitivity` that are none of its configuration.
        config: How the policy is asked.
        client: Whom to ask.
        trainer: The configuration of verl's trainer, or None if nobody knows it.

    Returns:
        Weights that others hand over, or the checkpoints of verl.

    Raises:
        ValueError: If keys contradict each other, or verl will not write what they say.
    """
    return checkpoint_weights.weights_of(given, config, client, lambda keys: Tracker(_checked(trainer, keys)))


def _checked(config: Any, keys: CheckpointKeys) -> str:  # noqa: ANN401 - a DictConfig
    """The folder in which verl will write what the keys say, or the reason why it will not."""
    if config is None:
        raise ValueError("got weights and no trainer behind refill_fn; expected verl's, which knows where it saves")
    trainer, policy = config["trainer"], config["actor_rollout_ref"]
    mode = trainer["v1"]["trainer_mode"]
    if mode != "sync":
        raise ValueError(
            f"got weights with trainer.v1.trainer_mode={mode}, in which weights of several steps write one batch, and "
            "one request is answered by those of one; expected sync, or no weights"
        )
    if keys.folder_at(1) != "global_step_1":
        raise ValueError(f"got weights {keys.weights!r}; expected global_step_{STEP} in it, as verl calls its folders")
    frequency = trainer["save_freq"]
    if frequency < 1:
        raise ValueError(f"got weights with trainer.save_freq={frequency}, which saves nothing; expected at least 1")
    if keys.max_weights_age < frequency - 1:
        raise ValueError(
            f"got trainer.save_freq={frequency} with max_weights_age={keys.max_weights_age}, so that most steps would "
            f"have no weights; expected trainer.save_freq=1, or max_weights_age={frequency - 1}"
        )
    actor = policy["actor"]
    checkpoint = actor.get("checkpoint") or {}
    contents = list(checkpoint.get("save_contents") or [])
    # Megatron with a bridge writes the same for `model`.
    if "hf_model" not in contents and not (actor.get("strategy") == "megatron" and "model" in contents):
        raise ValueError(
            f"got weights with actor_rollout_ref.actor.checkpoint.save_contents={contents}, which no service can read; "
            "expected hf_model among them"
        )
    if checkpoint.get("async_save", False):
        raise ValueError(
            "got weights with actor_rollout_ref.actor.checkpoint.async_save=True, with which verl does not say when a "
            "checkpoint is whole; expected False"
        )
    model = policy["model"]
    adapter = model.get("lora_adapter_path") or (model.get("lora") or {}).get("rank") or model.get("lora_rank")
    if adapter:
        raise ValueError(
            f"got weights with an adapter (actor_rollout_ref.model: {adapter!r}), whose checkpoints have no weights "
            "under the names of the model; expected none"
        )
    folder, resumed = str(trainer["default_local_dir"]), trainer.get("resume_from_path")
    if trainer.get("resume_mode") == "resume_path" and Path(str(resumed)).resolve().parent != Path(folder).resolve():
        raise ValueError(
            f"got weights with trainer.resume_from_path={resumed}, outside of trainer.default_local_dir={folder}; "
            "expected a folder in it, because weights leads to one place for all steps"
        )
    return folder
