"""The service of the demonstration of OAR, which holds one policy, and how it is pulled out while it computes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from live import Service, live_service
from oar_plans import MODEL

OAR_ROUTE = "/v1/credit/oar"
WEIGHTS_ROUTE = "/v1/models/{id}/weights"
SHARD_BYTES = 1 << 16
"""Less than the weights of the policy, and more than a word about them."""
POLL_S = 0.005
SENT_S = 0.5
"""How long the service is held after the last weights: by then the trainer has sent the next request."""
BEGUN_S = 0.02
"""How long it goes on after that: enough to begin with the request, and not to answer it."""
WAIT_LIMIT_S = 600.0


def write_config(directory: Path) -> Path:
    """Settings of a service that has the policy.

    Args:
        directory: Where they are written; the policy lies in its folder `models`.

    Returns:
        The file.
    """
    path = directory / "service.toml"
    lines = [f"models_root = {json.dumps(str(directory / 'models'))}", "cache_bytes = 0", "[[models]]"]
    entries = [f'id = "{MODEL}"', f'path = "{MODEL}"', 'kind = "policy"', ""]
    path.write_text("\n".join([*lines, *entries]), encoding="utf-8")
    return path


def logged(log: Path, route: str, status: int = 200, least_bytes: int = 0) -> list[dict[str, Any]]:
    """Lines of a log about requests to a route that were answered, in order; a line half written is none.

    Args:
        log: Of a service.
        route: As it is documented.
        status: Of the answers.
        least_bytes: Of the body of the request.

    Returns:
        Their fields.
    """
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        if route in line:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if record.get("route") == route and record.get("status") == status and record["bytes_in"] >= least_bytes:
                found.append(record)
    return found


class FragileService:
    """A service that can be killed and started anew at the same address; as a context manager it runs.

    Attributes:
        service: The one that runs now, or ran last.
        logs: Of all that ran, in order.
    """

    def __init__(self, directory: Path, config: Path) -> None:
        self._directory, self._config = directory, config
        self._stack = ExitStack()
        self._port = 0
        self.logs: list[Path] = []

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._stack.close()

    def start(self) -> None:
        """Start it, where it was before if it ran before."""
        folder = self._directory / f"start_{len(self.logs)}"
        folder.mkdir(parents=True)
        self.service: Service = self._stack.enter_context(live_service(folder, self._config, self._port))
        self._port = int(self.service.url.rpartition(":")[2])
        self.logs.append(self.service.log)

    def kill(self) -> None:
        """End it with SIGKILL."""
        os.kill(self.service.pid, signal.SIGKILL)
        self._stack.close()

    def answered(self, request_ids: list[str]) -> int:
        """How many of the requests were answered with 200, by this service or by one that was here before."""
        found = {record["request_id"] for log in self.logs for record in logged(log, OAR_ROUTE)}
        return sum(request_id in found for request_id in request_ids)

    def counts(self) -> tuple[int, int]:
        """Weights and requests that the service has answered since it was started last."""
        uploads = logged(self.service.log, WEIGHTS_ROUTE, least_bytes=SHARD_BYTES)
        return len(uploads), len(logged(self.service.log, OAR_ROUTE))

    def lose_request(self, number: int, before: tuple[int, int], has_ended: Callable[[], bool]) -> dict[str, float]:
        """Kill the service while it computes a request, and start it anew.

        It waits until the weights for that request are there and every request before it has been answered.

        Args:
            number: Which request of a training is lost, from 1.
            before: The counts when the training began.
            has_ended: Whether nobody will ask any more.

        Returns:
            `weights_before` and `requests_before`, how many of each it had answered the training when it was killed,
            and `seconds` until it listened again.

        Raises:
            RuntimeError: If the request was answered before the service could be killed, or never came.
        """
        limit = time.monotonic() + WAIT_LIMIT_S
        while self.counts()[0] - before[0] < number:
            if has_ended() or time.monotonic() > limit:
                raise RuntimeError(f"no weights for request {number} came")
            time.sleep(POLL_S)
        # Held, so that it cannot answer before it is ended, however fast it is.
        os.kill(self.service.pid, signal.SIGSTOP)
        time.sleep(SENT_S)
        os.kill(self.service.pid, signal.SIGCONT)
        time.sleep(BEGUN_S)
        started = time.monotonic()
        self.kill()
        weights, requests = (count - earlier for count, earlier in zip(self.counts(), before, strict=True))
        if (weights, requests) != (number, number - 1):
            raise RuntimeError(
                f"got {weights} weights and {requests} requests answered; expected {number} and one less"
            )
        self.start()
        return {
            "weights_before": weights,
            "requests_before": requests,
            "seconds": time.monotonic() - started,
        }
