"""The application: our own API, the dialects, health, metrics and the page, behind the guard.

GET  /health/live   the process can be saved; /health/ready: it scores
GET  /metrics       Prometheus
GET  /              the page
POST /v1/reward     /v1/compare, GET /v1/info
POST …              the routes of other tools, dialects/
"""

import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException

from dmoerm.data.strict_json import parse_text
from dmoerm.errors import DataError
from dmoerm.records import Reward, ScoreFailure
from dmoerm.scoring.verdict import verdict
from dmoerm.serving.dialects.table import ROUTERS
from dmoerm.serving.guard import Guard
from dmoerm.serving.metrics import CONTENT_TYPE, Metrics
from dmoerm.serving.problems import Problem, problem_body
from dmoerm.serving.queue import ScoringQueue
from dmoerm.serving.schemas import CompareReply, CompareRequest, RewardReply, RewardRequest, conversation, scored
from dmoerm.serving.service import Service
from dmoerm.serving.settings import ServerSettings

if TYPE_CHECKING:
    from dmoerm.modeling.reward_model import RewardModel

__all__ = ["Server", "build_server"]

PAGE_FILES = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
MOST_PROBLEMS = 10
"""Problems of one body that are listed."""

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No valid API key."},
    413: {"description": "The body, or its texts, are too large."},
    422: {"description": "Something in the body is not as expected; `details` says where."},
    429: {"description": "No room in the line; Retry-After says when to come back."},
    503: {"description": "The model is being loaded, has stopped, or took too long."},
}


class Server:
    """The guarded application (an ASGI callable) with its queue.

    Attributes:
        api: the FastAPI application inside.
        queue: the line before the model.
    """

    def __init__(self, api: FastAPI, queue: ScoringQueue, guard: Guard) -> None:
        self.api = api
        self.queue = queue
        self._guard = guard

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        await self._guard(scope, receive, send)


def build_server(load: "Callable[[], RewardModel]", settings: ServerSettings, *, on_load_error: Callable[[], None] | None = None) -> Server:
    """A server of one model; the model is loaded when the server starts, not here.

    Args:
        load: gives the model, checked.
        settings: key, hosts, limits.
        on_load_error: called when `load` raised an error (`Server.queue.load_error`).
    """
    metrics = Metrics()
    queue = ScoringQueue(load, settings.limits, metrics, on_load_error)
    service = Service(queue, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        queue.start()
        try:
            yield
        finally:
            queue.close()

    api = FastAPI(
        title="dmoerm",
        version=version("dmoerm"),
        description="Rewards by category and capability. Rewards compare responses to one prompt.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        responses=ERRORS,
    )
    api.router.route_class = StrictRoute
    api.add_exception_handler(Problem, _problem)
    api.add_exception_handler(RequestValidationError, _not_valid)
    api.add_exception_handler(StarletteHTTPException, _http)
    _add_health(api, queue, metrics)
    _add_page(api)
    _add_own(api, service)
    for make_router in ROUTERS.values():
        router = make_router(service)
        for route in router.routes:
            assert isinstance(route, APIRoute)
            api.add_api_route(route.path, route.endpoint, methods=list(route.methods or ()), tags=route.tags)
    paths = frozenset(path for route in api.routes if (path := getattr(route, "path", None)) is not None)
    return Server(api, queue, Guard(api, settings, metrics, paths))


class StrictRequest(Request):
    """A request whose JSON is read as strictly as our files: NaN, a key that comes twice or an unpaired surrogate are refused."""

    async def json(self) -> Any:
        """The body.

        Raises:
            HTTPException: it is not usable JSON.
        """
        try:
            text = (await self.body()).decode("utf-8")
            return parse_text(text)
        except UnicodeDecodeError as error:
            raise HTTPException(422, f"the body is not UTF-8 (byte {error.start})") from None
        except DataError as error:
            raise HTTPException(422, f"the body is {str(error)[:200]}" if str(error).startswith("not") else str(error)[:200]) from None


class StrictRoute(APIRoute):
    """A route that reads its body strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, given a strict request."""
        usual = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await usual(StrictRequest(request.scope, request.receive))

        return handler


# --- routes -------------------------------------------------------------------------------------------------------------------------


def _add_health(api: FastAPI, queue: ScoringQueue, metrics: Metrics) -> None:
    @api.get("/health/live", tags=["operations"])
    async def live() -> JSONResponse:
        """200 while the process can be saved; 503 means that it has to be started again."""
        return JSONResponse({"live": queue.alive}, 200 if queue.alive else 503)

    @api.get("/health/ready", tags=["operations"])
    async def ready() -> JSONResponse:
        """200 when requests are scored."""
        return JSONResponse({"ready": queue.ready}, 200 if queue.ready else 503)

    @api.get("/metrics", tags=["operations"], response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Numbers for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_page(api: FastAPI) -> None:
    for path, (name, kind) in PAGE_FILES.items():
        content = files("dmoerm.serving").joinpath("page", name).read_bytes()

        async def page(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=f"{kind}; charset=utf-8")

        api.add_route(path, _plain(page), methods=["GET"], include_in_schema=False)


def _plain(make: Callable[[], Coroutine[Any, Any, Response]]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def endpoint(request: Request) -> Response:
        return await make()

    return endpoint


def _add_own(api: FastAPI, service: Service) -> None:
    @api.post("/v1/reward", tags=["dmoerm"])
    async def reward(body: RewardRequest) -> RewardReply:
        """The reward of each response to one prompt, with its reasons."""
        results = await _judge(service, body)
        return RewardReply.model_validate({**_head(service, body), "results": [scored(result) for result in results]})

    @api.post("/v1/compare", tags=["dmoerm"])
    async def compare(body: CompareRequest) -> CompareReply:
        """Which response wins, by how much and how surely."""
        results = await _judge(service, body)
        failed = [(place, result) for place, result in enumerate(results) if isinstance(result, ScoreFailure)]
        if failed:
            place, failure = failed[0]
            raise Problem(422, f"response {place + 1} cannot be compared: {failure.message}", field=f"responses.{place}")
        rewards = [result for result in results if isinstance(result, Reward)]
        found = {**verdict(rewards).as_dict(rewards), **_head(service, body), "results": [scored(one) for one in rewards]}
        return CompareReply.model_validate(found)

    @api.get("/v1/info", tags=["dmoerm"])
    async def info() -> dict[str, Any]:
        """The model and the limits of this server."""
        return _info(service)


async def _judge(service: Service, body: RewardRequest) -> "Sequence[Reward | ScoreFailure]":
    return await service.score_one(conversation(body.prompt), body.responses, category=body.category, aggregation=body.aggregation)


def _head(service: Service, body: RewardRequest) -> dict[str, str]:
    return {"model": service.settings.name, "aggregation": service.aggregation(body.aggregation)}


def _info(service: Service) -> dict[str, Any]:
    model = service.queue.model
    described = {category.name: category.description for category in model.taxonomy.categories}
    return {
        "model": service.settings.name,
        "version": version("dmoerm"),
        "backbone": model.backbone.name,
        "aggregation": service.aggregation(None),
        "max_length_tokens": model.renderer.max_length_tokens,
        "categories": {
            name: {"description": described.get(name, "the fallback, where the router is unsure"), "capabilities": list(inner.capabilities)}
            for name, inner in model.inner.items()
        },
        "routed_to_general_below": model.router.general_below,
        "limits": asdict(service.settings.limits),
    }


# --- errors -------------------------------------------------------------------------------------------------------------------------


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return JSONResponse(problem_body(error.status, error.message, **error.details), error.status, headers=error.headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse(problem_body(error.status_code, str(error.detail)), error.status_code, headers=error.headers)


async def _not_valid(request: Request, error: Exception) -> Response:
    """Where and what, never what came."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return JSONResponse(problem_body(415, "expected a JSON body with Content-Type: application/json"), 415)
    details = [{"field": _field(one["loc"]), "message": one["msg"]} for one in found[:MOST_PROBLEMS]]
    where = details[0]["field"]
    message = f"{where}: {details[0]['message']}" if where else str(details[0]["message"])
    more = "" if len(found) == 1 else f" (and {len(found) - 1} more)"
    return JSONResponse(problem_body(422, message + more, details=details), 422)


def _field(location: Sequence[int | str]) -> str:
    """body.responses.3 as people write it; a key of the request's own is cut."""
    parts = [str(part)[:40] for part in location if part != "body"]
    return json.dumps(".".join(parts), ensure_ascii=True)[1:-1][:120]
