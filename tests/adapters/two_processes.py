"""One of two processes that train together, each with half of every group; started by torchrun from a test."""

import sys
from pathlib import Path

import torch

from adapters.test_trl import Watch, trainer_of
from creditd.adapters.trl import CreditConfig


def main(folder: Path) -> None:
    """Train two steps and write down the advantages that this process used."""
    credit = CreditConfig(url="local:", record=str(folder / "wire"))
    trainer = trainer_of(folder, credit=credit, per_device_train_batch_size=2, max_steps=2)
    watch = Watch(trainer)
    trainer.train()
    shown = [advantages for _, _, advantages in watch.generated]
    torch.save(shown, folder / f"rank{trainer.accelerator.process_index}.pt")
    # A process that leaves while the other still talks makes that one abort.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
