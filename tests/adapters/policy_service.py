"""A service with a policy whose sensitivities the tests know: run by the tests of trainers, as a process of its own.

Usage: python policy_service.py [SPEC]

SPEC is a JSON object with fields of `ModelSpec`, such as `max_tokens`. The variable PORT names the port; without it a
free one is taken.
"""

import json
import os
import sys


def sensed(version, token):
    """How much an answer depends on a token, for one version of the weights `RUN:STEP`."""
    step = version.rpartition(":")[2]
    return ((7 * token) % 5) / 2 + (int(step) % 3 if step.isdecimal() else 0) * (token % 2)


def measured(version, item, _):
    """The same of each measured token."""
    return [sensed(version, int(item.completion_ids[place])) for place in item.positions]


def broken(*_):
    """A policy that fails."""
    raise ValueError


def main(spec: str = "{}") -> int:
    """Serve until asked to end."""
    from creditd.engines.fake_policy import FakePolicy
    from creditd.engines.model_spec import ModelSpec
    from creditd.engines.registry import Registry
    from creditd.server.app import create_app
    from creditd.server.logs import configure_logging
    from creditd.server.resources import Resources
    from creditd.server.serve import serve
    from creditd.server.settings import Settings

    settings = Settings(port=int(os.environ.get("PORT", "0")))
    policies = {"policy": measured, "broken": broken}
    engines = {
        name: FakePolicy(measure, ModelSpec(name, "nowhere", kind="policy", **json.loads(spec)))
        for name, measure in policies.items()
    }
    configure_logging()
    app = create_app(settings, Resources(settings, engines=Registry(policies=engines)))
    return serve(app, lambda port: sys.stdout.write(f"listens on http://127.0.0.1:{port}\n") and sys.stdout.flush())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
