"""Advantages that a sampler found, laid over those of verl by the exact key of each row.

verl hands the keys of a batch, in their order at that moment and with those of padding rows, to one function; that
function is wrapped, once per process. Rewards and their metrics stay as they are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from creditd.adapters.verl_seams import seam

OWN_ESTIMATORS = ("creditd_shapley", "creditd_scar", "creditd_oar")
"""Estimators that have nothing to say beside what a sampler found."""

_MODULE, _NAME = "verl.trainer.ppo.v1.trainer_base", "compute_advantage_for_multi_trajectories"


class Overlay:
    """The advantages of the batch that was sampled last in this process."""

    def __init__(self) -> None:
        self._rows: dict[str, list[float]] = {}

    def keep(self, rows: Mapping[str, list[float]]) -> None:
        """Have these in the place of all that were there.

        Args:
            rows: One advantage per response token by the key of a row.
        """
        self._rows = dict(rows)

    def laid_over(self, batch: Any, keys: Sequence[str], *, whole: bool) -> tuple[Any, Any]:  # noqa: ANN401 - tensors
        """Advantages of a batch, and which rows have some.

        Args:
            batch: Padded tensors of shape (B, T): `response_mask`.
            keys: Names of the B rows.
            whole: Whether every row in which the policy wrote has to be known.

        Returns:
            Float32 of shape (B, T), exactly 0 where the mask is; and bool of shape (B, 1).

        Raises:
            ValueError: If a row that is trained is unknown although it must not be, or has tokens beyond those that
                creditd answered.
        """
        import torch  # noqa: PLC0415 - whoever has a batch has it

        mask = batch["response_mask"]
        found = torch.zeros(mask.shape, dtype=torch.float32)
        known = torch.zeros((mask.shape[0], 1), dtype=torch.bool)
        ends = [int(row.nonzero().max()) + 1 if row.any() else 0 for row in mask]
        for place, (key, end) in enumerate(zip(keys, ends, strict=True)):
            values = self._rows.get(key)
            if values is None:
                if whole and end:
                    raise ValueError(
                        f"row {key} is trained, but creditd was not asked about it; expected the rows that the "
                        "sampler of "
                        "creditd sampled last, and padding"
                    )
                continue
            if not end <= len(values) <= mask.shape[1]:
                raise ValueError(
                    f"row {key} has {end} of {mask.shape[1]} tokens up to the last one that is trained, and creditd "
                    "answered "
                    f"{len(values)}; expected one advantage per response token"
                )
            found[place, : len(values)] = torch.tensor(values, dtype=torch.float32)
            known[place] = True
        return found.to(mask.device) * (mask != 0), known.to(mask.device)

    @property
    def is_empty(self) -> bool:
        """Whether no sampler has found anything yet."""
        return not self._rows


OVERLAY = Overlay()


def install() -> None:
    """Wrap verl's function, unless it is.

    Raises:
        SeamMovedError: If verl has it no more, or hands it other arguments.
    """
    import importlib  # noqa: PLC0415 - as its use

    original = seam(_MODULE, _NAME, ("data", "batch_keys", "adv_estimator"))
    if getattr(original, "creditd_overlay", None) is None:
        setattr(importlib.import_module(_MODULE), _NAME, overlaid(original, OVERLAY))


def overlaid(original: Callable[..., Any], overlay: Overlay) -> Callable[..., Any]:
    """The function of verl with advantages laid over what it computes.

    Args:
        original: Takes `data`, `batch_keys` and `adv_estimator`, and returns data whose `batch` has `advantages` and
            `returns`.
        overlay: What is laid over.

    Returns:
        The same. An estimator of creditd is not asked where there is something to lay over; what another one computes
        stays in rows that are unknown.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - verl's own
        bound = signature.bind(*args, **kwargs).arguments
        keys, own = list(bound["batch_keys"]), bound["adv_estimator"] in OWN_ESTIMATORS
        if overlay.is_empty:
            return original(*args, **kwargs)
        data = bound["data"] if own else original(*args, **kwargs)
        found, known = overlay.laid_over(data.batch, keys, whole=own)
        for name in ("advantages", "returns"):
            data.batch[name] = found if own else found.where(known, data.batch[name])
        return data

    wrapper.creditd_overlay = overlay  # type: ignore[attr-defined]  # by which it is known
    return wrapper
