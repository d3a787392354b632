"""The checkpoints of OpenRLHF as the weights that a service is given.

The weights of OpenRLHF's policy are in its workers, and the process that trains has none of them. With
`--ckpt.save_hf` the workers write `{ckpt.path}/global_step{N}_hf` after step N, which a service can read
(`checkpoint_weights`). The process that trains waits for all of them before it generates for the next step: that its
own `save_logs_and_checkpoints` came back says that the checkpoint is whole. That a folder exists would say nothing,
because an earlier run may have left it. OpenRLHF removes none of these folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from creditd.adapters.checkpoint_weights import STEP, CheckpointKeys, Words


class SavedCheckpoints:
    """Which checkpoint this run wrote last, as its trainer says.

    Args:
        folder: `--ckpt.path`, as this process sees it.
    """

    words = Words(
        trainer="OpenRLHF",
        evidence="what this trainer saved",
        written_by="--ckpt.save_steps and --ckpt.save_hf",
        initial="--credit.initial_weights",
    )

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self._last: int | None = None

    def saved(self, step: int) -> None:
        """Know that OpenRLHF has written the checkpoint of a step, all of it."""
        self._last = step

    def written(self) -> int | None:
        """The step of the last one, or None if this run wrote none yet."""
        return self._last


def check_checkpoints(args: Any, keys: CheckpointKeys) -> None:  # noqa: ANN401 - OpenRLHF's own namespace
    """Refuse settings under which OpenRLHF does not write what a service is to read.

    Args:
        args: OpenRLHF's arguments, as its command line leaves them.
        keys: Where the service finds checkpoints.

    Raises:
        ValueError: With the reason.
    """
    if args.train.async_enable:
        raise ValueError(
            "got --credit.weights with --train.async_enable, in which a batch was written by weights of an earlier "
            "step, or of several, that nobody names; expected generation that waits for training, or none of the two"
        )
    if keys.folder_at(1) != "global_step1_hf":
        raise ValueError(
            f"got --credit.weights {keys.weights!r}; expected global_step{STEP}_hf in it, as OpenRLHF calls its folders"
        )
    steps, saving = args.ckpt.save_steps, "--ckpt.save_steps"
    if not 1 <= steps < float("inf"):  # OpenRLHF makes inf of -1
        raise ValueError(f"got --credit.weights with {saving} {steps}, which saves nothing; expected at least 1")
    if not args.ckpt.save_hf:
        raise ValueError(
            "got --credit.weights without --ckpt.save_hf: no service can read the checkpoints of DeepSpeed; expected it"
        )
    if keys.max_weights_age < steps - 1:
        raise ValueError(
            f"got {saving} {steps} with --credit.max_weights_age {keys.max_weights_age}, so that most steps would have "
            f"no weights; expected {saving} 1, or --credit.max_weights_age {steps - 1}"
        )
    for given, name, why in (
        (args.ds.lora.rank > 0, "--ds.lora.rank", "whose checkpoints have the adapter alone"),
        (
            args.ds.load_in_4bit,
            "--ds.load_in_4bit",
            "whose checkpoints have other tensors than the policy of a service",
        ),
        (
            args.train.enable_ema,
            "--train.enable_ema",
            "whose checkpoints have a moving average of weights, and not those that wrote a batch",
        ),
    ):
        if given:
            raise ValueError(f"got --credit.weights with {name}, {why}; expected none")
