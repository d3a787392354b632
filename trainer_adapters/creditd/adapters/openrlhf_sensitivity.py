"""What stands before OpenRLHF's experience maker for OAR: its own advantages, times the weights of tokens.

OpenRLHF computes advantages of its own rewards by its own estimator. Then there is one request for the whole batch, and
each token that the policy wrote has its advantage times its weight. Nothing here measures or weighs anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from creditd.adapters.checkpoint_weights import weights_of
from creditd.adapters.completions import token_offsets
from creditd.adapters.credit_reward import decoder
from creditd.adapters.creditors import client_of
from creditd.adapters.openrlhf_maker import BatchMaker, trained_on
from creditd.adapters.openrlhf_options import SensitivityChoices
from creditd.adapters.openrlhf_rows import Row, columns_of, rows_of_batch
from creditd.adapters.openrlhf_weights import SavedCheckpoints
from creditd.adapters.policy_sensitivity import PolicySensitivity
from creditd.adapters.sensitivity import Base, ReasonedRollout

log = logging.getLogger("creditd.adapters.openrlhf")


class SensitivityMaker(BatchMaker):
    """Stands before `RemoteExperienceMaker`."""

    def set_up_credit(self: Any, choices: SensitivityChoices) -> None:
        """Get ready to ask.

        Args:
            choices: What was chosen.

        Raises:
            ValueError: If the choices contradict each other, or no service would take them.
        """
        config = choices.made()
        self.get_ready(config)
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        self._decode = decoder(tokenizer, {tokenizer.eos_token_id, tokenizer.pad_token_id}, {})
        self._client = client_of(config)
        self._saved = SavedCheckpoints(self.args.ckpt.path)
        weights = weights_of(choices.of_weights, config, self._client, lambda _: self._saved)
        self._sensitivity = PolicySensitivity(self._client, config, weights, log)

    def saved(self: Any, step: int) -> None:
        """Know that the checkpoint of a step is there, to be handed over before the next batch."""
        self._saved.saved(step)

    def compute_advantages_and_returns(self: Any, experiences: list[Any]) -> list[Any]:
        """As OpenRLHF's, with each token's advantage times its weight."""
        rows = rows_of_batch(experiences)
        unknown = next((place for place, row in enumerate(rows) if row.other is None), None)
        if unknown is not None:
            raise ValueError(
                f"got no reward of completion {unknown} from OpenRLHF's own source; expected a number: its advantages "
                "are made of them"
            )
        done: list[Any] = super().compute_advantages_and_returns(experiences)
        started = time.perf_counter()
        self._sensitivity.sampled(self.credit_step)
        rollouts = [self._rollout(done, row) for row in rows]
        found = self._sensitivity.reshaped(rollouts, self.group_size(), self.credit_step)
        columns = columns_of(done, rows, found.token_advantages)
        for experience, advantages in zip(done, columns, strict=True):
            trained_on(experience, advantages)
        self._credit_metrics = found.metrics | {"credit/seconds": time.perf_counter() - started}
        return done

    def _rollout(self: Any, experiences: Sequence[Any], row: Row) -> ReasonedRollout:
        """A row as creditd sees it, with the advantages that OpenRLHF gave it."""
        text, offsets = token_offsets(row.ids, self._decode)
        written = np.array(row.written, dtype=np.bool_)
        number, place = row.place
        given = experiences[number].advantages[place, row.begin : row.begin + len(row.ids)]
        own = np.where(written, given.double().cpu().numpy(), 0.0)
        if not np.isfinite(own).all():
            raise ValueError(
                f"got advantages of OpenRLHF for row {place} of experience {number} that are not finite; expected "
                "numbers: a weight makes none of them"
            )
        trained = own[written]
        uniform = not len(trained) or bool((trained == trained[0]).all())
        advantage: Base = own if not uniform else float(trained[0]) if len(trained) else 0.0
        return ReasonedRollout(
            prompt_ids=tuple(row.prompt_ids),
            completion_ids=tuple(row.ids),
            text=text,
            offsets=tuple(offsets),
            written=None if written.all() else tuple(written.tolist()),
            advantage=advantage,
        )
