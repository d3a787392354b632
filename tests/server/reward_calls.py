"""How tests ask the routes that speak as other servers of rewards do."""

from __future__ import annotations

from creditd.wire.errors import Problem
from creditd.wire.served_rewards import ClassifyProblem
from server.model_services import with_models
from server.running import on_service
from server.test_errors import problem_of

GET_REWARD = "/get_reward"
OF_MODEL = "/v1/models/{}/get_reward"
CLASSIFY = "/classify"
REWARD_PATHS = (GET_REWARD, OF_MODEL.format("rm"), CLASSIFY)


def asked(body, path=GET_REWARD, *engines, **settings):
    """The response of a fresh service with models to one body."""
    return on_service(lambda service: service.post(body, path), with_models(*engines, **settings))


def queries(*texts, **more):
    """What OpenRLHF 0.11 sends of some samples."""
    return {"query": list(texts), "prompts": ["weather?"] * len(texts), "labels": [""] * len(texts), **more}


def body_for(path, text):
    """One text, as a route takes it."""
    return {"input": [text]} if path == CLASSIFY else queries(text)


def failure_of(response, code, path):
    """The problem of a model that was asked; that of `/classify` says it in vLLM's words as well."""
    return problem_of(response, code, ClassifyProblem if path == CLASSIFY else Problem)
