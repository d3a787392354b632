"""What a client asks about the service itself: what it is, which models it has, whether it is ready."""

from __future__ import annotations

import uuid

from creditd.client import answers, local
from creditd.client.attempts import Attempts, checked_seconds
from creditd.client.exceptions import NotReadyError
from creditd.client.steps import Pause, Steps
from creditd.wire.info import Info, ModelInfo

PROBE_TIMEOUT_S = 5.0
PROBE_INTERVAL_S = 0.5


class Inquiries(Attempts):
    """Questions without a body, as steps."""

    def info(self, *, deadline_s: float | None = None) -> Steps[Info]:
        """What the service is, does and allows.

        Args:
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.

        Returns:
            Versions, names of all choices, and limits.

        Raises:
            TransportError: If no answer came.
            StatusError: If the service refused or failed.
            ResponseError: If the answer is not in the schema of this client.
        """
        if self.is_local:
            return local.info()
        ending = yield from self.exchange("/v1/info", None, deadline_s, uuid.uuid4().hex)
        return answers.info(ending.success())

    def models(self, *, deadline_s: float | None = None) -> Steps[list[ModelInfo]]:
        """The models that requests may name, with their memory and their queues.

        Args:
            deadline_s: Seconds allowed for everything, waits and retries included. None: the client's.

        Returns:
            One entry per model; none in local mode.

        Raises:
            TransportError: If no answer came.
            StatusError: If the service refused or failed.
            ResponseError: If the answer is not in the schema of this client.
        """
        if self.is_local:
            return []
        ending = yield from self.exchange("/v1/models", None, deadline_s, uuid.uuid4().hex)
        return answers.models(ending.success())

    def ready(self) -> Steps[bool]:
        """Whether the service is ready, asked once.

        Returns:
            False while it starts or shuts down, and when nobody answers within 5 seconds.

        Raises:
            StatusError: If something answers that will never be ready, such as another service.
        """
        return self.is_local or (yield from self.probe(PROBE_TIMEOUT_S)) is None

    def wait_until_ready(self, timeout_s: float = 60.0) -> Steps[None]:
        """Wait for the service, which may not even listen yet.

        Args:
            timeout_s: Seconds to wait.

        Raises:
            NotReadyError: If it is not ready by then.
            StatusError: If something answers that will never be ready, such as another service.
        """
        if self.is_local:
            return
        timeout_s = checked_seconds("timeout_s", timeout_s)
        clock = self.timing.clock
        started = clock()
        remaining_s = timeout_s
        while True:
            reason = yield from self.probe(min(PROBE_TIMEOUT_S, remaining_s))
            if reason is None:
                return
            remaining_s = timeout_s - (clock() - started)
            if remaining_s <= PROBE_INTERVAL_S:
                waited_s = clock() - started
                raise NotReadyError(
                    f"{self.base_url} was not ready within {timeout_s:g} s; last: {reason}", waited_s=waited_s
                )
            yield Pause(PROBE_INTERVAL_S)
            remaining_s -= PROBE_INTERVAL_S
