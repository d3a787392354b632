"""Exchanges as files: `Client(record="directory")`.

A file is called `20261120T120000.000000Z-shapley-REQUEST_ID.json`, so that names sort by the time at which exchanges
ended. It gets its name when it is complete; until then the name has a point in front. A crash of the process leaves no
half recording; nothing is flushed to the disk, so a crash of the machine may.

A recording must never stop a training run. When one cannot be written (the disk is full, the directory was removed),
nothing is raised: the first failure is logged as a warning by the logger `creditd.client`, and all are counted. Logging
and not `warnings`, because a filter can turn a warning into an exception.

Cost, on the thread that calls `write`: the body and the answer as text, one file, and one listing of the directory; in
local mode also the encoding of the answer, which a service would have done.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from operator import index
from pathlib import Path
from threading import Lock

from creditd.client.exchanges import written
from creditd.client.steps import Exchange

DEFAULT_KEEP = 200
_MODE = 0o600
_DIRECTORY_MODE = 0o700
_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}Z-(?:shapley|group|scar)-[A-Za-z0-9._:-]{1,64}\.json")
_LOG = logging.getLogger("creditd.client")


class Recorder:
    """A directory of recordings; may be shared by threads, and the directory by processes.

    Attributes:
        failures: Exchanges that could not be recorded.

    Args:
        directory: Made if it is not there, readable by its owner alone. A relative one is found once, now.
        keep: Files kept, the newest ones. Only files with names of this module are ever removed.
        replace: How a finished file gets its name.

    Raises:
        OSError: If the directory cannot be made, or not written to.
        TypeError: If `keep` is no integer.
        ValueError: If `keep` is below 1, or the name is empty.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = DEFAULT_KEEP,
        *,
        replace: Callable[[Path, Path], None] = os.replace,
    ) -> None:
        if index(keep) < 1:
            raise ValueError(f"got keep {keep!r}; expected at least 1")
        if not os.fspath(directory):
            raise ValueError("got an empty name for the directory of recordings")
        self.failures = 0
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._replace = replace
        self._last = datetime.min.replace(tzinfo=timezone.utc)
        self._lock = Lock()
        self._directory.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "recordings cannot be written there", str(self._directory))

    def write(self, make: Callable[[], Exchange]) -> None:
        """Keep an exchange, and remove what is older than the newest `keep`; raises nothing.

        Args:
            make: Makes the exchange; what it raises is a failure to record, too.
        """
        try:
            exchange = make()
            self._put(self._name(exchange), written(exchange))
            self._prune()
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a recording, training goes on
            self._report(error)

    def _name(self, exchange: Exchange) -> str:
        """A name after all those before, also when the clock stands still or runs backwards."""
        with self._lock:
            self._last = max(exchange.time, self._last + timedelta(microseconds=1))
            stamp = self._last.strftime("%Y%m%dT%H%M%S.%fZ")
        return f"{stamp}-{exchange.operation.rpartition('/')[2]}-{exchange.request_id}.json"

    def _put(self, name: str, content: bytes) -> None:
        temporary = self._directory / f".{name}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            self._replace(temporary, self._directory / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def _prune(self) -> None:
        """Remove all but the newest, and unfinished files that are older than these: their writers are dead."""
        with os.scandir(self._directory) as entries:
            files = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        finished = sorted(name for name in files if _NAME.fullmatch(name))
        if len(finished) < self._keep:
            return
        oldest = finished[-self._keep]
        unfinished = [name for name in files if name[:1] == "." and _NAME.fullmatch(name[1:]) and name[1:] < oldest]
        for name in [*finished[: -self._keep], *unfinished]:
            with suppress(FileNotFoundError):  # another process was faster
                (self._directory / name).unlink()

    def _report(self, error: Exception) -> None:
        with self._lock:
            self.failures += 1
            first = self.failures == 1
        if first:
            _LOG.warning(
                "an exchange could not be recorded in %s (%s: %s); further failures are counted in record_failures",
                self._directory,
                type(error).__name__,
                error,
            )
