"""Which releases of which trainers the adapters are tested with, and the places in them that they stand on."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from itertools import takewhile
from typing import Any


@dataclass(frozen=True)
class Seam:
    """A place in a framework that an adapter takes hold of.

    Attributes:
        module: Where it is.
        name: Its name there, dotted within a class.
        parameters: Names of parameters that it is called with, or calls with.
    """

    module: str
    name: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        called = f"({', '.join(self.parameters)})" if self.parameters else ""
        return f"{self.module}.{self.name}{called}"


@dataclass(frozen=True)
class Plugin:
    """What a framework loads by itself, hiding what goes wrong.

    Attributes:
        group: Of entry points, in which it looks.
        name: Of creditd's there.
        registry: Where it keeps what plug-ins register: a module, and a mapping in it.
        registers: What creditd's has registered once it was loaded.
        variable: The environment variable that says which plug-ins are loaded.
    """

    group: str
    name: str
    registry: tuple[str, str]
    registers: tuple[str, ...]
    variable: str

    def problem(self) -> str | None:
        """Why what it registers is not known here; None if it is.

        Raises:
            Exception: Whatever importing the framework raises.
        """
        points = [point for point in entry_points(group=self.group) if point.name == self.name]
        if not points:
            return f"no entry point {self.name} under {self.group}"
        module, attribute = self.registry
        known = getattr(importlib.import_module(module), attribute)
        missing = [name for name in self.registers if name not in known]
        if not missing:
            return None
        try:
            points[0].load()
        except Exception as error:  # noqa: BLE001 - it is said, whatever it is
            return f"its plug-in cannot be loaded: {type(error).__name__}: {error}"
        policy = os.environ.get(self.variable)
        if policy is not None:
            return f"{missing[0]} is not registered: {self.variable}={policy} keeps its plug-in out"
        return f"{missing[0]} is not registered, though its plug-in can be loaded"


@dataclass(frozen=True)
class Framework:
    """A trainer, as its adapter knows it.

    Attributes:
        name: As people call it.
        distribution: As pip calls it.
        oldest: First release that is tested.
        newest: Last one.
        seams: Where the adapter takes hold of it.
        plugin: What the framework loads of the adapter by itself; None where it needs nothing.
        left_out: Releases between the two that are not tested.
        python: The oldest Python that it is made for; None where creditd's own will do.
    """

    name: str
    distribution: str
    oldest: tuple[int, ...]
    newest: tuple[int, ...]
    seams: tuple[Seam, ...]
    plugin: Plugin | None = None
    left_out: tuple[tuple[int, ...], ...] = ()
    python: tuple[int, int] | None = None

    @property
    def installed(self) -> str | None:
        """The release that is installed; None without any."""
        try:
            return version(self.distribution)
        except PackageNotFoundError:
            return None

    @property
    def tested(self) -> str:
        """The releases that are tested."""
        oldest, newest, *left_out = (".".join(map(str, one)) for one in (self.oldest, self.newest, *self.left_out))
        without = f" without {', '.join(left_out)}" if left_out else ""
        return oldest if oldest == newest else f"{oldest} to {newest}{without}"

    def is_tested(self, installed: str) -> bool:
        """Whether a release is among those that are tested; of the last one all corrections are."""
        found = _release(installed)
        if any(found[: len(one)] == one for one in self.left_out):
            return False
        return self.oldest <= found and found[: len(self.newest)] <= self.newest

    def moved(self) -> list[Seam]:
        """The seams that are not where they were, or take other parameters.

        Raises:
            Exception: Whatever importing the framework raises.
        """
        return [seam for seam in self.seams if not _is_there(seam)]


class SeamMovedError(RuntimeError):
    """A framework has changed where an adapter takes hold of it."""


def demand_seams(framework: Framework) -> None:
    """Refuse a framework in which a seam is not where it was: what is trained on would be something else.

    Args:
        framework: It.

    Raises:
        SeamMovedError: With the seams by name.
    """
    moved = framework.moved()
    if moved:
        raise SeamMovedError(
            f"{framework.name} {framework.installed} has no {listed(moved)} any more; expected a release that creditd "
            f"is tested with: {framework.tested}"
        )


def listed(seams: Sequence[Seam]) -> str:
    """Seams by name."""
    return ", no ".join(map(str, seams))


def _is_there(seam: Seam) -> bool:
    try:
        found: Any = importlib.import_module(seam.module)
    except ModuleNotFoundError as error:
        gone = error.name or ""
        if "." not in gone or not f"{seam.module}.".startswith(f"{gone}."):
            raise  # the framework itself is not there, or lacks something else
        return False
    for part in seam.name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    if not seam.parameters:
        return True
    known = inspect.signature(found).parameters
    return all(name in known for name in seam.parameters)


def _release(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with."""
    numbers = takewhile(bool, (_DIGITS.match(part) for part in text.partition("+")[0].split(".")))
    return tuple(int(found.group()) for found in numbers if found)


_DIGITS = re.compile(r"\d+")
_GRPO = "trl.trainer.grpo_trainer"
TRL = Framework(
    name="TRL",
    distribution="trl",
    oldest=(1, 14, 2),
    newest=(1, 16),
    seams=(
        Seam(_GRPO, "GRPOTrainer._generate", ("prompts",)),
        Seam(_GRPO, "GRPOTrainer._calculate_rewards", ("inputs", "prompts", "completions", "completion_ids_list")),
        Seam(_GRPO, "GRPOTrainer._generate_and_score_completions", ("inputs",)),
        Seam(_GRPO, "GRPOTrainer._compute_loss", ("model", "inputs")),
        Seam("trl.trainer.utils", "nanstd"),
    ),
    left_out=((1, 15),),
)
_MAKER = "openrlhf.trainer.ppo_utils.experience_maker"
_TRAINER = "openrlhf.trainer.ppo_trainer"
OPENRLHF = Framework(
    name="OpenRLHF",
    distribution="openrlhf",
    oldest=(0, 11, 2),
    newest=(0, 11, 2),
    seams=(
        Seam(_MAKER, "RemoteExperienceMaker.make_experience_batch", ("rollout_samples",)),
        Seam(_MAKER, "RemoteExperienceMaker.compute_advantages_and_returns", ("experiences",)),
        Seam(
            _MAKER,
            "RemoteExperienceMaker.get_advantages_and_returns",
            ("values", "rewards", "action_mask", "gamma", "lambd"),
        ),
        Seam(_MAKER, "RemoteExperienceMaker.get_cumulative_returns", ("rewards", "action_mask", "gamma")),
        Seam(_TRAINER, "BasePPOTrainer.train_step", ("rollout_samples", "global_step")),
        Seam(_TRAINER, "BasePPOTrainer.save_logs_and_checkpoints", ("global_step", "logs_dict", "client_states")),
        Seam(_TRAINER, "PPOTrainer.__ray_metadata__.modified_class"),
        Seam(f"{_TRAINER}_async", "PPOTrainerAsync.__ray_metadata__.modified_class"),
        Seam(f"{_TRAINER}_async", "TrainingActor.__ray_metadata__.modified_class"),
        Seam("openrlhf.models.utils", "compute_reward", ("r", "kl_coef", "kl", "action_mask", "reward_clip_range")),
    ),
)
_SAMPLER = "verl.trainer.ppo.v1.replay_buffer"
_SAMPLED = ("global_steps", "partition_id", "batch_size")
VERL = Framework(
    name="verl",
    distribution="verl",
    oldest=(0, 9, 1),
    newest=(0, 9, 1),
    seams=(
        Seam(_SAMPLER, "ReplayBuffer.sample", _SAMPLED),
        Seam(_SAMPLER, "ReplayBufferAsync.sample", _SAMPLED),
        Seam(
            "verl.trainer.ppo.v1.trainer_base",
            "compute_advantage_for_multi_trajectories",
            ("data", "batch_keys", "adv_estimator"),
        ),
        Seam("verl.trainer.ppo.core_algos", "register_adv_est"),
    ),
    plugin=Plugin(
        group="verl.plugins",
        name="creditd",
        registry=("verl.trainer.ppo.core_algos", "ADV_ESTIMATOR_REGISTRY"),
        registers=("creditd_shapley", "creditd_scar", "creditd_oar", "creditd_group"),
        variable="VERL_USE_EXTERNAL_PLUGINS",
    ),
)
_ESTIMATORS = "skyrl.backends.skyrl_train.utils.ppo_utils"
_SKYRL_TRAINER = "skyrl.train.trainer"
SKYRL = Framework(
    name="SkyRL",
    distribution="skyrl",
    oldest=(0, 3, 0),
    newest=(0, 3, 0),
    seams=(
        Seam(_ESTIMATORS, "AdvantageEstimatorRegistry.register", ("name", "func")),
        Seam(_ESTIMATORS, "AdvantageEstimatorRegistry.list_available"),
        Seam("skyrl.train.generators.base", "GeneratorInterface.generate", ("input_batch",)),
        Seam(_SKYRL_TRAINER, "RayPPOTrainer.generate", ("input_batch",)),
        Seam(_SKYRL_TRAINER, "RayPPOTrainer.postprocess_generator_output", ("generator_output", "uids")),
        Seam(_SKYRL_TRAINER, "RayPPOTrainer.compute_advantages_and_returns", ("data",)),
    ),
    python=(3, 12),
)
FRAMEWORKS = (TRL, VERL, OPENRLHF, SKYRL)
"""In the order in which they are looked at."""
