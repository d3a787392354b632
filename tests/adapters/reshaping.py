"""Trainers whose advantages are reshaped, of a tiny model that writes answers behind a mark."""

import json
from contextlib import contextmanager

import torch
from trl import GRPOTrainer

from adapters.tiny import model, tokenizer
from adapters.trainers import length, scripted, trainer_of
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.trl_sensitivity import SensitivityGRPOTrainer

NOBODY = "http://127.0.0.1:9"
MARK = "####"
CONSTANT = {"floor": 1.0, "beta": 0.0}
ANSWERED = [
    ["one", "two", "three", MARK, "four", "<eos>"],
    ["six", "six", "one", "five", MARK, "two", "<eos>"],
    ["two", "one", "<eos>"],
    [";", "three", "four", "two", "one", "six", MARK, "one"],
]
"""Completions with an answer behind the mark, and one without; the last is cut off."""
MASKS = [[1, 0, 1, 1, 1, 1], [1] * 7, [1] * 3, [0, 0, *[1] * 6]]
MADE = []
"""Trainers of a test."""


def uneven(completions, **_):
    """A reward by length that is the mean of no group."""
    return [(len(completion) / 10) ** 3 for completion in completions]


@contextmanager
def closing():
    """Close the connections of trainers afterwards, which nobody else does."""
    yield
    for trainer in MADE:
        if not trainer._sensitivity.in_process:
            trainer._sensitivity_client.close()
    MADE.clear()


def config(url=NOBODY, **options):
    """How these tests ask."""
    return SensitivityConfig(**{"parser": "hashes", "model": "policy", "url": url, "max_credit_share": None} | options)


def reshaping(
    directory, url=NOBODY, *, kind=SensitivityGRPOTrainer, rewards=None, completions=ANSWERED, masks=None, **options
):
    """A trainer with the mark in its vocabulary."""
    settings = {name: options.pop(name) for name in tuple(options) if name in SensitivityConfig.__dataclass_fields__}
    extra = {} if kind is GRPOTrainer else {"sensitivity": config(url, **settings)}
    rollout = None if completions is None else scripted(completions, [MARK], masks)
    trainer = trainer_of(
        directory, kind=kind, rewards=rewards or [length], more=[MARK], rollout_func=rollout, **extra, **options
    )
    MADE.extend([trainer] if extra else [])
    return trainer


def entries(trainer, name):
    """A metric, step by step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def parameters(trainer):
    """All of them, flat."""
    return torch.cat([value.detach().flatten() for value in trainer.model.parameters()])


def served_model(folder):
    """The settings of a service whose policy has the files of another model, in a file: its path.

    What it says of the trainer's model comes from weights that it is given.
    """
    model(seed=7, more=[MARK]).save_pretrained(folder / "model", safe_serialization=True)
    tokenizer([MARK]).save_pretrained(folder / "model")
    settings = folder / "service.toml"
    root = f"models_root = {json.dumps(str(folder))}"
    settings.write_text(f'{root}\n[[models]]\nid = "policy"\nkind = "policy"\npath = "model"\n')
    return str(settings)
