"""The contract's rollouts in TRL: in one process, or in one of two with half of each group, which torchrun starts."""

import json
import os
import pickle
import sys
from pathlib import Path

from accelerate import PartialState

from adapters.contract import GROUP
from adapters.trainers import Watch, scripted, trainer_of


def trained(folder, rollouts, config, steps):
    """Train a tiny model whose completions are written beforehand.

    Args:
        folder: Where the trainer writes.
        rollouts: Of the contract.
        config: How to ask.
        steps: Of each step the rollouts of this process.

    Returns:
        For each step what the loss takes, row by row, without padding.
    """
    written = iter(steps)

    def rollout(prompts, trainer):
        places = next(written)
        masks = None if rollouts.written is None else [rollouts.masks[place] for place in places]
        return scripted([rollouts.words[place] for place in places], masks=masks)(prompts, trainer)

    trainer = trainer_of(
        folder,
        rewards=rollouts.reward(),
        credit=config,
        rollout_func=rollout,
        columns={"label": ["a", "b", "c", "d"] * 4},
        shuffle_dataset=False,
        max_steps=len(steps),
        num_generations=GROUP,
        per_device_train_batch_size=len(steps[0]),
    )
    watch = Watch(trainer)
    trainer.train()
    found = []
    for places, (_, _, advantages) in zip(steps, watch.generated, strict=True):
        lengths = [len(rollouts.ids[place]) for place in places]
        assert not any(advantages[row, length:].any() for row, length in enumerate(lengths))
        found.append([advantages[row, :length].tolist() for row, length in enumerate(lengths)])
    return found


def main(folder: Path) -> None:
    """Train on a group in each step, of which this process has half; write down what its loss takes."""
    rollouts, config = pickle.loads((folder / "contract.pickle").read_bytes())  # noqa: S301 - the test wrote it
    rank, half = int(os.environ["RANK"]), GROUP // 2
    steps = [range(start + rank * half, start + (rank + 1) * half) for start in range(0, len(rollouts.words), GROUP)]
    found = trained(folder / f"out{rank}", rollouts, config, steps)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    # A process that leaves while the other still talks makes that one abort.
    PartialState().wait_for_everyone()
    os._exit(0)  # threads of torch have been seen to keep a process that has ended


if __name__ == "__main__":
    main(Path(sys.argv[1]))
