"""`POST /get_reward` and `POST /classify`: rewards of a model, as OpenRLHF and clients of vLLM ask for them."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from creditd.server.body import JSON, deadline_of
from creditd.server.held_responses import HeldResponse
from creditd.server.openapi_rewards import described_rewards, named_model
from creditd.server.raw_routes import RawRoute
from creditd.server.resources import resources_of
from creditd.server.reward_answers import GET_REWARD_S, answer_classify, answer_get_reward
from creditd.wire.served_rewards import (
    ClassifyProblem,
    ClassifyRequest,
    ClassifyResponse,
    GetRewardRequest,
    GetRewardResponse,
)

router = APIRouter(tags=["rewards"], route_class=RawRoute)


@router.post("/get_reward", operation_id="get_reward", **described_rewards(GetRewardRequest, GetRewardResponse))
async def get_reward(request: Request) -> Response:
    """One reward per query by the only reward model, for OpenRLHF's `--reward.remote_url`.

    Where keys are configured the address may be `/with_key/KEY/get_reward`.
    """
    return _respond(request, await answer_get_reward(request, deadline_of(request, GET_REWARD_S)))


@router.post(
    "/v1/models/{id:path}/get_reward",  # noqa: FAST003 - a raw route reads the path itself
    operation_id="get_reward_of_model",
    **named_model(described_rewards(GetRewardRequest, GetRewardResponse)),
)
async def get_reward_of_model(request: Request) -> Response:
    """The same by a reward model that the address names; with a key `/with_key/KEY/v1/models/ID/get_reward`."""
    name = request.path_params["id"]
    return _respond(request, await answer_get_reward(request, deadline_of(request, GET_REWARD_S), name))


@router.post(
    "/classify", operation_id="classify", **described_rewards(ClassifyRequest, ClassifyResponse, ClassifyProblem)
)
async def classify(request: Request) -> Response:
    """Rewards of texts in the shape of vLLM's route, for verl and for other services of creditd.

    Where keys are configured the address may be `/with_key/KEY/classify`.
    """
    return _respond(request, await answer_classify(request, deadline_of(request)))


def _respond(request: Request, answer: BaseModel) -> Response:
    return HeldResponse(answer.model_dump_json().encode(), JSON, resources_of(request))
