"""Seconds and memory that new weights of a policy cost, by path and by shards, against plain torch, in one run.

    PYTHONPATH=client:service:tests python -m benchmarks.weights --out FILE [--quick]

The policy is in memory on a processor, its batcher runs, and nobody asks. Ways take turns, shuffled; the tensors of the
model have to be those of the files, bit for bit, before a time counts. Files were written just before, so they are read
from memory that the system keeps them in.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from typing_extensions import Self

from benchmarks.measure import device, on_one_thread, parser, timing_of, versions, write_report
from creditd.engines.batching import Batcher
from creditd.engines.live_weights import LiveWeights
from creditd.engines.weight_files import SwapReport, staged_from_path
from creditd.engines.weight_uploads import CHECKSUM_BYTES, ShardPlace, WeightUploads
from creditd.engines.weight_versions import WeightVersions

PEER, PATH, SHARDS, CAST = "torch", "path", "shards", "path, cast"
PIECE = 1 << 16
"""Bytes that a route takes from its connection at once."""
SAMPLED_S = 0.002
GB = 1e9


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        model: Settings of the policy.
        shard_bytes: Bytes of a shard at most, but for larger tensors.
        rounds: Times that every way is taken.
    """

    model: dict[str, Any]
    shard_bytes: int
    rounds: int


FULL = Size(
    {
        "vocab_size": 32_000,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 5,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    1 << 26,
    7,
)
QUICK = Size(
    {
        "vocab_size": 500,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    1 << 17,
    2,
)


class NobodyAsks:
    """A scorer without works."""

    def n_tokens(self, _work: object) -> int:
        """None."""
        return 0

    def score(self, _works: object, _beat: object) -> list[Any]:
        """None."""
        return []


class Memory:
    """Most resident memory of this process while it is entered, beside what it had before.

    Attributes:
        peak: Bytes of all pages.
        peak_own: Bytes of pages that are no file's; those of files can be taken away and read again.
    """

    def __enter__(self) -> Self:
        """Begin to look."""
        self._before, self.peak, self.peak_own = _resident(), 0, 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look once more."""
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            now = _resident()
            self.peak = max(self.peak, now[0] - self._before[0])
            self.peak_own = max(self.peak_own, now[1] - self._before[1])
            if self._is_over.wait(SAMPLED_S):
                return


def _resident() -> tuple[int, int]:
    """Bytes that are resident, and those of them that are no file's."""
    found = {"VmRSS": 0, "RssAnon": 0}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024
    return found["VmRSS"], found["RssAnon"]


class Policy:
    """A policy whose weights are replaced, and files with other weights.

    Attributes:
        n_bytes: Of the weights in memory.
    """

    def __init__(self, size: Size, root: Path) -> None:
        """Make both."""
        torch.manual_seed(0)
        self._root = root
        self.model = LlamaForCausalLM(LlamaConfig(**size.model, tie_word_embeddings=False)).eval()
        self.new = {name: torch.randn_like(tensor) for name, tensor in self.model.state_dict().items()}
        self.n_bytes = sum(tensor.nbytes for tensor in self.new.values())
        save_file(self.new, root / "new.safetensors")
        self.cast = {name: tensor.bfloat16() for name, tensor in self.new.items()}
        save_file(self.cast, root / "cast.safetensors")
        self.shards = self._sharded(size.shard_bytes)
        self._versions = WeightVersions("loaded")
        self._batcher: Batcher[Any] = Batcher(
            NobodyAsks(), batch_tokens=1, max_queued_tokens=1, name="policy", versions=self._versions
        )
        self._live = LiveWeights(self.model, self._batcher, self._versions, name="policy")
        self._uploads = WeightUploads(root / "spool", max_bytes=1 << 40, max_shard_bytes=1 << 40, ttl_s=600.0)
        self._n_pushed = 0

    def _sharded(self, shard_bytes: int) -> list[Path]:
        """Files with the new weights, as a trainer makes shards: tensor after tensor up to a size."""
        parts: list[dict[str, torch.Tensor]] = [{}]
        for name, tensor in self.new.items():
            if parts[-1] and sum(one.nbytes for one in parts[-1].values()) + tensor.nbytes > shard_bytes:
                parts.append({})
            parts[-1][name] = tensor
        for number, part in enumerate(parts):
            save_file(part, self._root / f"shard-{number}")
        return [self._root / f"shard-{number}" for number in range(len(parts))]

    def spoil(self) -> None:
        """Make the weights others than those that come, in their places."""
        with torch.no_grad():
            for tensor in self.model.parameters():
                tensor.fill_(0.5)

    def demand(self, expected: dict[str, torch.Tensor]) -> None:
        """Refuse weights that are not those that came."""
        for name, tensor in self.model.state_dict().items():
            if not torch.equal(tensor, expected[name].to(tensor.dtype)):
                raise SystemExit(f"{name} is not what was pushed")

    def close(self) -> None:
        """End all threads."""
        self._batcher.close()
        self._live.close()
        self._uploads.close()

    def _version(self) -> str:
        self._n_pushed += 1
        return f"v{self._n_pushed}"

    def by_torch(self) -> dict[str, float]:
        """The plain way, without any check but that of names and shapes."""
        start = time.perf_counter()
        self.model.load_state_dict(load_file(self._root / "new.safetensors"))
        return {"swap": time.perf_counter() - start}

    def by_path(self, name: str = "new.safetensors") -> dict[str, float]:
        """A file below the root."""
        return _seconds(self._live.replace(staged_from_path(self._root, name, self._version())).result())

    def by_cast(self) -> dict[str, float]:
        """A file of half the size, cast to the type of the policy."""
        return self.by_path("cast.safetensors")

    def by_shards(self) -> dict[str, float]:
        """Shards, in pieces as they come from a connection."""
        version, receive_s, progress = self._version(), 0.0, None
        for number, shard in enumerate(self.shards):
            with shard.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=CHECKSUM_BYTES)).hexdigest()
                file.seek(0)
                start = time.perf_counter()
                place = ShardPlace("policy", version, number, len(self.shards), digest)
                writer = self._uploads.begin(place, self._versions.current)
                while piece := file.read(PIECE):
                    writer.write(piece)
                progress = writer.finish()
                receive_s += time.perf_counter() - start
        if progress is None or progress.staged is None:
            raise SystemExit("the shards did not make a whole")
        return {"receive": receive_s} | _seconds(self._live.replace(progress.staged).result())


def _seconds(report: SwapReport) -> dict[str, float]:
    return {"verify": report.verify_s, "swap": report.swap_s}


def measured(size: Size, root: Path) -> dict[str, Any]:
    """Seconds and memory of every way."""
    policy = Policy(size, root)
    ways: dict[str, tuple[Callable[[], dict[str, float]], dict[str, torch.Tensor]]] = {
        PEER: (policy.by_torch, policy.new),
        PATH: (policy.by_path, policy.new),
        SHARDS: (policy.by_shards, policy.new),
        CAST: (policy.by_cast, policy.cast),
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    memory: dict[str, list[tuple[int, int]]] = {name: [] for name in ways}
    order = random.Random(0)  # noqa: S311 - the order of measurements
    for turn in range(size.rounds + 1):
        for name in order.sample(list(ways), len(ways)):
            push, expected = ways[name]
            policy.spoil()
            with Memory() as used:
                found = push()
            policy.demand(expected)
            if turn:  # the first round warms up
                memory[name].append((used.peak, used.peak_own))
                for step, took in (found | {"all": sum(found.values())}).items():
                    seconds[name].setdefault(step, []).append(took)
    policy.close()
    n_file_bytes = {name: sum(one.nbytes for one in expected.values()) for name, (_, expected) in ways.items()}
    return {
        "n_bytes": policy.n_bytes,
        "n_tensors": len(policy.new),
        "n_shards": len(policy.shards),
        "ways": {
            name: {
                "n_file_bytes": n_file_bytes[name],
                "per_gb": {
                    step: timing_of([1e6 * one * GB / n_file_bytes[name] for one in took])
                    for step, took in steps.items()
                },
                "peak_extra_bytes": max(peak for peak, _ in memory[name]),
                "peak_extra_own_bytes": max(own for _, own in memory[name]),
            }
            for name, steps in seconds.items()
        },
    }


def main() -> None:
    """Measure, print and write."""
    on_one_thread()
    made = parser("New weights of a policy, against plain torch")
    made.add_argument("--quick", action="store_true", help="a tiny policy, to see that everything runs")
    options = made.parse_args()
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as root:
        found = measured(size, Path(root))
    for name, way in found["ways"].items():
        steps = ", ".join(f"{step} {timing.median_us / 1e6:.3g} s/GB" for step, timing in way["per_gb"].items())
        print(f"{name}: {steps}; {way['peak_extra_bytes'] / found['n_bytes']:.1%} of the model in extra memory")
    report = {
        "benchmark": "weights",
        "versions": versions(["torch", "safetensors", "transformers"]),
        "model": size.model,
        "rounds": size.rounds,
        **found,
        "device": device(),
    }
    write_report(options.out, report)


if __name__ == "__main__":
    main()
