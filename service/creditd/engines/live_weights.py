"""Weights of a policy that are replaced while it answers: all is verified first, then all is copied between two works.

Verification runs beside the engine and takes no memory to speak of. The copy runs in the engine's thread, goes straight
into the tensors of the model, and cannot be left half-way: an engine whose copy fails is stopped.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import torch
from torch import nn

from creditd.engines.batching import Batcher
from creditd.engines.errors import EngineError, EngineFailedError, EngineStoppedError, WeightsRefusedError
from creditd.engines.low_rank import Adapter, LowRankAdapters, checked_config, layer_of, own_name
from creditd.engines.safetensors_header import StoredTensor, shown
from creditd.engines.weight_files import StagedWeights, SwapReport
from creditd.engines.weight_values import (
    DTYPES,
    PIECE_BYTES,
    Digests,
    Place,
    copy_values,
    digests_of,
    dtype_names,
    read_values,
)
from creditd.engines.weight_versions import WeightVersions

log = logging.getLogger("creditd.engines")

CLOSING_S = 5.0
"""How long a push is waited for at the end."""
_CAST = frozenset({torch.float32, torch.bfloat16, torch.float16})
"""Types that are cast to each other."""


class LiveWeights:
    """The weights of a policy, and the thread that verifies those that are to replace them."""

    def __init__(
        self,
        model: nn.Module,
        batcher: Batcher[Any],
        versions: WeightVersions,
        *,
        name: str,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Take a model as it was loaded.

        Args:
            model: The policy.
            batcher: Whose thread alone runs it.
            versions: Those of the batcher.
            name: Of the policy, for the thread and the log.
            changed: Called by the engine's thread after each change, to renew what was copied out of the model.
        """
        self._batcher, self._versions, self._name, self._changed = batcher, versions, name, changed
        # Adapters come between modules, but the tensors themselves stay the model's.
        self._tensors: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
        self._full_version = versions.current
        self._has_own_adapter = hasattr(model, "peft_config")
        self._adapters = LowRankAdapters(model)
        self._closing, self._is_closed = threading.Lock(), False
        self._pushed: SimpleQueue[StagedWeights | None] = SimpleQueue()
        # A daemon: a change that waits for a device which never answers does not keep the process.
        self._thread = threading.Thread(target=self._run, name=f"creditd-weights-{name}", daemon=True)
        self._thread.start()

    def replace(self, staged: StagedWeights) -> Future[SwapReport]:
        """Verify weights, and make them the policy's.

        Args:
            staged: From `staged_from_path` or `WeightUploads`. What they spooled is removed in any case.

        Returns:
            `staged.outcome`: the report, once answers are of the new version, or

            - `WeightsRefusedError`: names, shapes, types or numbers are not those of the model; nothing was changed;
            - `WeightVersionMismatchError`: the version's name stands for other weights; nothing was changed;
            - `EngineStoppedError`: the engine is closed, or was stopped because the copy failed half-way.

        Cost:
            Reads the files twice, once to verify them and once to copy them; no copy of the model is ever made. Memory
            is a few pieces of 4 MiB, and the adapter if it is one.
        """
        with self._closing:
            if not self._is_closed:
                self._pushed.put(staged)
                return staged.outcome
        staged.release()
        staged.outcome.set_exception(EngineStoppedError("the engine is stopped"))
        return staged.outcome

    def close(self, timeout_s: float | None = CLOSING_S) -> None:
        """End the thread; to be called once the batcher is closed, so that pushes that wait fail at once.

        Args:
            timeout_s: How long the push that it works on is waited for; None: as long as it takes.
        """
        with self._closing:
            self._is_closed = True
            self._pushed.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while staged := self._pushed.get():
            self._replace(staged)

    def _replace(self, staged: StagedWeights) -> None:
        """Fulfil the outcome, whatever happens."""
        try:
            report = self._replaced(staged)
        except BaseException as error:
            self._batcher.refuse(staged.version)
            staged.release()
            if isinstance(error, EngineError):
                staged.outcome.set_exception(error)
                return
            log.exception("model %s: weights could not be verified", self._name)
            failure = EngineFailedError(f"the weights could not be verified: {type(error).__name__}")
            failure.__cause__ = error
            staged.outcome.set_exception(failure)
        else:
            staged.release()
            staged.outcome.set_result(report)

    def _replaced(self, staged: StagedWeights) -> SwapReport:
        begun = time.perf_counter()
        self._demand_open()
        with staged.opened() as descriptors:
            places = {name: (descriptors[file], tensor) for name, (file, tensor) in staged.tensors.items()}
            adapter, targets = self._plan(staged, places)
            dtypes = {name: target.dtype for name, target in targets.items()}
            kind = "" if adapter is None else json.dumps([self._full_version, adapter.config, adapter.merged])
            digests = digests_of(places, dtypes, kind, self._demand_open)
            if adapter is None:
                self._demand_tied(staged.tensors, digests)
            casts = [DTYPES[place[1].dtype] for name, place in places.items() if DTYPES[place[1].dtype] != dtypes[name]]
            verify_s = time.perf_counter() - begun

            def report(swap_s: float, *, skipped: bool) -> SwapReport:
                cast_from = dtype_names(casts)
                n_bytes, n_tensors = staged.n_bytes, len(places)
                return SwapReport(staged.version, n_bytes, n_tensors, cast_from, verify_s, swap_s, skipped)

            if self._versions.claim(staged.version, digests.whole):
                return report(0.0, skipped=True)

            def change(beat: Callable[[], None]) -> SwapReport:
                started = time.perf_counter()
                staged.demand_unchanged(descriptors)
                if adapter is not None:
                    self._adapters.mount(adapter)
                else:
                    self._copy(places, beat)
                    if not staged.is_unchanged(descriptors):
                        raise RuntimeError("a file of weights was written to while it was copied")
                    self._full_version = staged.version
                self._changed()
                return report(time.perf_counter() - started, skipped=False)

            return self._batcher.swap(change, staged.version).result()

    def _demand_open(self) -> None:
        if not self._batcher.is_alive:
            raise EngineStoppedError("the engine is stopped")

    def _plan(
        self, staged: StagedWeights, places: Mapping[str, Place]
    ) -> tuple[Adapter | None, Mapping[str, torch.Tensor]]:
        """The adapter, if it is one, and what each tensor of the files becomes."""
        if self._has_own_adapter:
            raise WeightsRefusedError(
                "the directory that the policy was loaded from has an adapter in it, and its weights cannot be "
                "replaced; expected a directory without adapter_config.json"
            )
        return (None, self._targets(staged.tensors)) if staged.adapter is None else self._adapter(staged, places)

    def _demand_tied(self, stored: Mapping[str, tuple[int, StoredTensor]], digests: Digests) -> None:
        """Refuse other numbers for two names of one tensor."""
        first: dict[int, str] = {}
        for name in stored:
            other = first.setdefault(id(self._tensors[name]), name)
            if (digests.of_tensors[name], stored[name][1].dtype) != (
                digests.of_tensors[other],
                stored[other][1].dtype,
            ):
                raise WeightsRefusedError(
                    f"got other numbers for {shown(name)} than for {shown(other)}, which are one tensor of the policy; "
                    "expected one of the two, or the same numbers"
                )

    def _copy(self, places: Mapping[str, Place], beat: Callable[[], None]) -> None:
        """Copy all tensors into the model, without any adapter."""
        self._adapters.unmount(restored=False)
        piece = bytearray(PIECE_BYTES)
        for name, place in places.items():
            copy_values(place, self._tensors[name], piece)
            beat()
        for device in {tensor.device for tensor in self._tensors.values() if tensor.device.type == "cuda"}:
            torch.cuda.synchronize(device)

    def _targets(self, stored: Mapping[str, tuple[int, StoredTensor]]) -> dict[str, torch.Tensor]:
        """The tensors of the model that these are for: all of them, tied ones under one of their names at least."""
        foreign = sorted(set(stored) - set(self._tensors))
        if foreign:
            raise WeightsRefusedError(
                f"got {len(foreign)} tensors that the policy does not have, among them {shown(foreign[0])}; expected "
                "the names of its state_dict"
            )
        there = {id(self._tensors[name]) for name in stored}
        missing = sorted(name for name, tensor in self._tensors.items() if id(tensor) not in there)
        if missing:
            raise WeightsRefusedError(
                f"got no {shown(missing[0])}, one of {len(missing)} tensors of the policy that are missing; expected "
                "all of its state_dict"
            )
        targets = {name: self._tensors[name] for name in stored}
        for name, target in targets.items():
            _demand_fitting(name, stored[name][1], tuple(target.shape), target.dtype)
        return targets

    def _adapter(
        self, staged: StagedWeights, places: Mapping[str, Place]
    ) -> tuple[Adapter, Mapping[str, torch.Tensor]]:
        """An adapter in memory, and what of it each tensor of the files is, by its name there."""
        names = {name: own_name(name) for name in places}
        own_layers = {name.rpartition(".")[0] for name in self._tensors}
        config = checked_config(staged.adapter or {}, own_layers & set(map(layer_of, names.values())))
        shapes = self._adapters.shapes(config, merged=staged.merged)
        foreign = sorted(name for name, own in names.items() if own not in shapes)
        missing = sorted(set(shapes) - set(names.values()))
        if foreign or missing or len(set(names.values())) != len(names):
            raise WeightsRefusedError(
                f"got {len(foreign)} tensors that are not of the adapter that its configuration describes, and "
                f"{len(missing)} of it are missing, among them {shown([*foreign, *missing, ''][0])}; expected what "
                "save_pretrained of peft wrote"
            )
        for name, own in names.items():
            _demand_fitting(name, places[name][1], shapes[own], torch.float32)
        tensors = {name: read_values(place) for name, place in places.items()}
        named = {names[name]: tensor for name, tensor in tensors.items()}
        return Adapter(config, named, staged.merged), tensors


def _demand_fitting(name: str, stored: StoredTensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse a tensor that is not of the shape, or of a type that is not cast to the one that is there."""
    if stored.shape != shape:
        raise WeightsRefusedError(f"got {shown(name)} of shape {stored.shape}; expected {shape}")
    got = DTYPES[stored.dtype]
    if got != dtype and not {got, dtype} <= _CAST:
        names = [str(one).removeprefix("torch.") for one in (got, dtype)]
        raise WeightsRefusedError(
            f"got {shown(name)} of {names[0]}, where the policy has {names[1]}; expected that, or any of "
            "float32, bfloat16 and float16 where it has one of them"
        )
