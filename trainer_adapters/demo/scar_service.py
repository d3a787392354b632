"""The credit of the demonstration of SCAR: every number comes over HTTP from `POST /v1/credit/scar`."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

import scar_task as task
from creditd.client import Client
from live import Service
from scar_plans import CHOICES, DEADLINE_S, ESTIMATOR, MODEL, SEGMENTATION
from scar_training import GROUP, THEMES, Credited, Notes, draw

COST_REPEATS = 5


def write_config(directory: Path) -> Path:
    """Settings of a service that has the reward model and remembers nothing, so that each method pays for itself.

    Args:
        directory: Where they are written; the model lies in its folder `models`.

    Returns:
        The file.
    """
    path = directory / "service.toml"
    lines = [f"models_root = {json.dumps(str(directory / 'models'))}", "cache_bytes = 0", "[[models]]"]
    path.write_text("\n".join([*lines, f'id = "{MODEL}"', f'path = "{MODEL}"', ""]), encoding="utf-8")
    return path


def costs(service: Service, client: Client, checkpoint: Path) -> dict[str, dict[str, float]]:
    """What each method costs for the notes of a first step, while nothing else is asked.

    Args:
        service: The service.
        client: Of it.
        checkpoint: The policy that writes the notes.

    Returns:
        By method, for one step: `evaluations`, `seconds` of the request and `processor_seconds` of the service, each
        the median of a few repeats after one that is not counted.
    """
    policy = LlamaForCausalLM.from_pretrained(checkpoint)
    notes = draw(policy, THEMES, torch.Generator().manual_seed(0))
    credit = ServiceCredit(client)
    found = {}
    for method in CHOICES:
        credit(method, THEMES, notes)
        repeats = []
        for _ in range(COST_REPEATS):
            before = service.processor_seconds()
            made = credit(method, THEMES, notes)
            repeats.append((made.evaluations, made.seconds, service.processor_seconds() - before))
        names = ("evaluations", "seconds", "processor_seconds")
        found[method] = dict(zip(names, map(statistics.median, zip(*repeats, strict=True)), strict=True))
    return found


class ServiceCredit:
    """The service as the source of the advantages of a training."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __call__(self, method: str, themes: Sequence[int], notes: Notes) -> Credited:
        """Advantages in the GRPO form; rollouts of one group follow one another.

        Raises:
            CreditdError: If the service refuses, or does not answer before the deadline.
        """
        choice = CHOICES[method]
        started = time.perf_counter()
        result = self._client.scar(
            [task.PROMPTS[theme] for theme in themes],
            notes.texts,
            model=MODEL,
            token_offsets=notes.offsets,
            groups=[row // GROUP for row in range(len(notes.texts))],
            segmentation=SEGMENTATION,
            credit=choice["credit"],
            estimator=ESTIMATOR if choice["credit"] == "auto" else None,
            alpha=choice["alpha"],
            advantage="pooled",
            expect={"group_size": GROUP},
            deadline_s=DEADLINE_S,
        )
        seconds = time.perf_counter() - started
        if result.token_advantages is None:
            raise RuntimeError("the service gave no token advantages; expected those of the pooled form")
        return Credited(
            advantages=list(result.token_advantages),
            scores=np.asarray(result.utility_grand),
            units=np.diff(result.units.row_splits),
            evaluations=result.usage.evaluations,
            seconds=seconds,
            request_id=result.request_id,
        )
