"""What stands before the actor that trains in OpenRLHF, and how it comes into that process.

OpenRLHF's trainers are actors of Ray: their process imports OpenRLHF anew, so nothing that is patched in the process
that starts them arrives there. A class that is made of theirs does: Ray sends it, with what was chosen.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from creditd.adapters.openrlhf_maker import CreditMaker
from creditd.adapters.openrlhf_options import Choices, SensitivityChoices
from creditd.adapters.openrlhf_sensitivity import SensitivityMaker
from creditd.adapters.openrlhf_settings import STRATEGY, TRAINERS, actor_of, check_seams, check_settings, moved
from creditd.adapters.step_share import StepShare

_ASYNC = "openrlhf.trainer.ppo_trainer_async"


class CreditTraining:
    """Stands before the class of the actor that trains, `PPOTrainer` or `TrainingActor`.

    Attributes:
        credit_choices: What was chosen; the class that is made of both has it.
    """

    credit_choices: Choices

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_up_credit()

    def _set_up_credit(self: Any) -> None:
        """Refuse what cannot work, and put the adapter before the experience maker that is there."""
        check_seams()
        check_settings(self.args, self.credit_choices)
        maker = self.experience_maker
        kind, before = (
            type(maker),
            SensitivityMaker if isinstance(self.credit_choices, SensitivityChoices) else CreditMaker,
        )
        maker.__class__ = type(f"Credit{kind.__name__}", (before, kind), {})
        maker.set_up_credit(self.credit_choices)
        self._credit_share = StepShare(
            maker.credit_config.max_credit_share,
            "a service nearer to the trainer helps, and --credit.max_credit_share changes when this is said",
        )

    def credit_is_ready(self) -> bool:
        """Whether the adapter is there: that this method is."""
        return True

    def save_logs_and_checkpoints(
        self: Any, global_step: int, logs_dict: Any = None, client_states: Any = None
    ) -> None:
        """As OpenRLHF's, which comes back when all of its workers have written theirs."""
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)  # type: ignore[misc]
        if global_step % self.args.ckpt.save_steps == 0:
            self.experience_maker.saved(global_step)

    def train_step(self: Any, rollout_samples: list[Any], global_step: int) -> tuple[dict[str, Any], int]:
        """As OpenRLHF's, whose log gets the numbers of the credit."""
        self.experience_maker.credit_step = global_step
        status, following = super().train_step(rollout_samples, global_step)  # type: ignore[misc]
        metrics = self.experience_maker.taken_metrics()
        status.update(metrics, **self._credit_share.of_step(metrics["credit/seconds"]))
        return status, following


class CreditStarting:
    """Stands before the class of `PPOTrainerAsync`, whose process starts the actor that trains.

    Attributes:
        credit_choices: What was chosen.
    """

    credit_choices: Choices

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        import ray  # noqa: PLC0415 - it is there where OpenRLHF is

        check_seams()
        training = credit_class(actor_of(_ASYNC, "TrainingActor"), self.credit_choices)
        # Its own globals: Ray has a function of its own around it, and may have sent it by value, and then they are not
        # those of the module either.
        starts = super().__init__
        inspect.unwrap(starts).__globals__["TrainingActor"] = ray.remote(training)
        starts(*args, **kwargs)
        self._check_training(ray)

    def _check_training(self: Any, ray: Any) -> None:
        """Refuse an actor that trains without credit, or that refused its settings, before anything is generated."""
        ready = getattr(getattr(self, "trainer_actor", None), "credit_is_ready", None)
        if ready is None:
            raise moved(f"{_ASYNC}.PPOTrainerAsync, whose trainer_actor is not its TrainingActor", "it")
        ray.get(ready.remote())


def credit_class(kind: type, choices: Choices) -> type:
    """A class of OpenRLHF with the adapter before it.

    Args:
        kind: Of `PPOTrainer`, `TrainingActor` or `PPOTrainerAsync`, without Ray around it.
        choices: What was chosen.

    Returns:
        A class of the same name, which Ray sends by value, with the choices in it.
    """
    before = CreditStarting if kind.__name__ == "PPOTrainerAsync" else CreditTraining
    return type(kind.__name__, (before, kind), {"credit_choices": choices, "__module__": __name__})


def install(choices: Choices) -> None:
    """Have OpenRLHF's command line start trainers with credit, and refuse what cannot work before it starts anything.

    Args:
        choices: What was chosen.

    Raises:
        SeamMovedError: If this OpenRLHF is not what the adapter stands on, by the name of what has moved.
    """
    import ray  # noqa: PLC0415 - as above

    check_seams()
    module, name = STRATEGY
    utilities = importlib.import_module(module)
    strategy_of = getattr(utilities, name)

    def checked(args: Any) -> Any:
        check_settings(args, choices)
        return strategy_of(args)

    setattr(utilities, name, checked)
    for module, name in TRAINERS.items():
        actor = ray.remote(credit_class(actor_of(module, name), choices))
        setattr(importlib.import_module(module), name, actor)
