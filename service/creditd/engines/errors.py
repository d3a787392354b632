"""Why an engine has no number: each is an error of its own, and none is ever a zero."""

from __future__ import annotations


class EngineError(Exception):
    """What an engine cannot do; the message has no text of any request."""


class EngineOverloadedError(EngineError):
    """More tokens wait than an engine takes.

    Attributes:
        retry_after_s: When it is likely to take more, seconds.
    """

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineExpiredError(EngineError):
    """Nobody waits for the work any more; it was never run."""


class EngineFailedError(EngineError):
    """The model failed, or gave a number that is not finite."""


class EngineStoppedError(EngineError):
    """The engine is closed, or its thread has ended."""


class ModelUnsuitableError(EngineError):
    """A model that cannot serve as it was registered; the message says what is wrong and what is expected."""


class WeightVersionUnknownError(EngineError):
    """A version of a policy's weights that the engine was never told of, or no longer remembers."""


class WeightVersionMismatchError(EngineError):
    """The policy's weights have another version than the one asked for, or the name stands for other bytes."""


class WeightsRefusedError(EngineError):
    """Weights that do not fit the policy or cannot be trusted; the message says what was got and what is expected.

    What the policy had before stays.
    """
