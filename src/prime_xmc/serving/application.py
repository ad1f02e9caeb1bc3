"""The HTTP API of a served model."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from prime_xmc.export.answers import to_record
from prime_xmc.export.predictor import Prediction, Predictor, checked_texts
from prime_xmc.export.predictor import Request as AskedOfPredictor
from prime_xmc.serving.batching import Batcher, QueueFullError
from prime_xmc.serving.limits import Limits
from prime_xmc.serving.middleware import BodyLimited, Guarded, Observed
from prime_xmc.serving.problems import ProblemError, body_problem
from prime_xmc.serving.query_page import policy, query_page
from prime_xmc.serving.schemas import (
    Health,
    LabelsFound,
    ModelDescription,
    Predictions,
    PredictRequest,
    ProblemReply,
    Reloaded,
    predict_request,
)
from prime_xmc.serving.served_model import ModelSlot, ReloadOutcome, ServedModel
from prime_xmc.serving.telemetry import CONTENT_TYPE, Telemetry

_STUCK = 120.0  # seconds after which a batch will not end any more
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": ProblemReply, "description": "The token is missing or another."},
    413: {"model": ProblemReply, "description": "The body is too large."},
    422: {"model": ProblemReply, "description": "The request is not understood, or out of bounds."},
    429: {"model": ProblemReply, "description": "Too many texts are waiting."},
    500: {"model": ProblemReply, "description": "A defect of the server."},
}


@dataclass(frozen=True)
class Question:
    """What is asked about a text; texts with the same question are answered at once.

    Attributes:
        predictor: Predictor of the scorer, of the model that is served when the request comes.
        arguments: Arguments of `Predictor.request`, by which questions are the same.
        request: What it makes of them.
    """

    predictor: Predictor
    arguments: tuple[Any, ...]
    request: AskedOfPredictor = field(compare=False)


def answer(texts: list[str], question: Question) -> list[Prediction]:
    """Return the labels of texts."""
    return question.predictor.answer(texts, question.request)


class Serving:
    """A served model with its queue and its metrics.

    Args:
        slot: The model.
        limits: Bounds on requests.
        max_batch: Most texts that are computed at once.
        max_wait: Longest time for which a text waits for others, in seconds.
        watch_seconds: Time between two looks at the model folder; None: it is not watched.
        title: Heading of the page.
    """

    def __init__(
        self,
        slot: ModelSlot,
        limits: Limits,
        *,
        max_batch: int = 32,
        max_wait: float | int = 0.004,
        watch_seconds: float | int | None = None,
        title: str = "Labels for a text",
    ):
        self.slot, self.limits, self.watch_seconds, self.title = slot, limits, watch_seconds, title
        self.telemetry = Telemetry()
        self.telemetry.show_model(slot.model)
        self.batcher: Batcher[Question, Prediction] = Batcher(
            answer,
            max_batch=max_batch,
            max_wait=max_wait,
            max_waiting=limits.waiting,
            record=self.telemetry.record_batch,
        )
        slot.report = self._report
        self._tasks: list[asyncio.Task[None]] = []

    def _report(self, outcome: ReloadOutcome) -> None:
        self.telemetry.record_reload(outcome)
        self.telemetry.show_model(self.slot.model)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer, and watch the folder, within the block."""
        self._tasks = [asyncio.create_task(self.batcher.run())]
        if self.watch_seconds is not None:
            self._tasks.append(asyncio.create_task(self.slot.watch(self.watch_seconds)))
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            for task in self._tasks:
                with suppress(asyncio.CancelledError):
                    await task

    @property
    def live(self) -> bool:
        """Whether the server can answer at all; if not, it has to be started again."""
        return bool(self._tasks) and not self._tasks[0].done() and self.batcher.busy_for() < _STUCK

    @property
    def ready(self) -> bool:
        """Whether another text finds room."""
        return self.live and not self.batcher.is_full

    async def predict(self, request: Request, body: PredictRequest) -> tuple[ServedModel, Predictor, list[Prediction]]:
        """Return the labels of a request's texts, with the model and the predictor that found them.

        Raises:
            ProblemError: If a text or the scorer is not accepted, the queue is full, or the client has gone.
        """
        model = self.slot.model
        scorer = model.scorer if body.scorer in (None, "auto") else body.scorer
        if scorer not in model.predictors:
            detail = f"scorer: this server has {' and '.join(model.predictors)}, got {str(scorer)[:50]!r}"
            raise ProblemError(422, "unknown_scorer", detail)
        try:
            texts = checked_texts(body.texts)
        except ValueError as error:
            raise ProblemError(422, "invalid", f"texts: {error}") from error
        predictor = model.predictors[scorer]
        question = await self._question(model, predictor, body)
        asking = asyncio.ensure_future(self.batcher.ask(texts, question))
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return model, predictor, asking.result()
        except QueueFullError as error:
            detail = f"more than {self.limits.waiting} texts would be waiting: try again in a second, and less often"
            raise ProblemError(429, "queue_full", detail, {"Retry-After": "1"}) from error
        finally:
            asking.cancel()
            leaving.cancel()
        self.telemetry.gone.inc()
        raise ProblemError(499, "client_gone", "the client has closed the connection")  # nobody reads it

    async def _question(self, model: ServedModel, predictor: Predictor, body: PredictRequest) -> Question:
        """Return what a request asks.

        Raises:
            ProblemError: If it asks for what the model does not have, or names labels that there are not.
        """
        if body.explain and not model.explains:
            raise ProblemError(422, "not_explained", "explain: this server explains no answers, see /model")
        if body.explain and len(body.texts) * body.top_k > self.limits.explained:
            detail = f"explain: expected at most {self.limits.explained} labels, texts times top_k"
            raise ProblemError(422, "invalid", f"{detail}, got {len(body.texts)} times {body.top_k}")
        if body.calibrate and predictor.scorer not in model.calibrated:
            detail = f"calibrate: the model has no calibration of the scorer {predictor.scorer}"
            raise ProblemError(422, "not_calibrated", detail)
        for name, given in (("allow", body.allow), ("exclude", body.exclude)):
            texts = [each for each in given or () if isinstance(each, str)]
            if unknown := [
                each for each in texts if each not in model.uids and (model.uids_are_numbers or not each.isdecimal())
            ]:
                detail = (
                    f"{name}: there is no label {unknown[0][:100]!r}; GET /labels?search= finds those that there are"
                )
                raise ProblemError(422, "unknown_label", detail)
        top_k = min(body.top_k, predictor.num_labels)
        ask = partial(
            predictor.request,
            top_k,
            body.min_score,
            allow=body.allow,
            exclude=body.exclude,
            calibrate=body.calibrate,
            explain=body.explain,
        )
        has_lists = body.allow is not None or body.exclude is not None
        try:
            request = await asyncio.to_thread(ask) if has_lists else ask()  # a list takes a look at all labels
        except ValueError as error:
            raise ProblemError(422, "invalid", str(error)) from error
        lists = tuple(None if given is None else tuple(given) for given in (body.allow, body.exclude))
        return Question(predictor, (top_k, body.min_score, *lists, body.calibrate, body.explain), request)


async def _disconnected(request: Request) -> None:
    """Wait until the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_app(serving: Serving, *, token: str | None = None, hosts: Collection[str] | None = None) -> FastAPI:
    """Return the application.

    Args:
        serving: What is served.
        token: Token that all but the page and the health need; None: none is needed.
        hosts: Names by which the server may be addressed; None: any.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with serving.running():
            yield

    app = FastAPI(
        title="prime_xmc",
        summary="Ranked labels for texts",
        version=version("prime_xmc"),
        lifespan=lifespan,
        docs_url=None,  # Swagger's page and ReDoc load scripts from elsewhere
        redoc_url=None,
    )
    limits, telemetry = serving.limits, serving.telemetry
    app.add_middleware(BodyLimited, telemetry=telemetry, max_bytes=limits.body_bytes, seconds=limits.body_seconds)
    app.add_middleware(Guarded, telemetry=telemetry, token=token, hosts=hosts)
    app.add_middleware(Observed, telemetry=telemetry)  # the outermost

    @app.exception_handler(ProblemError)
    async def refuse(_: Request, problem: ProblemError) -> Response:
        telemetry.errors.labels(problem.reason).inc()
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> Response:
        return await refuse(request, body_problem(list(error.errors())))

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # FastAPI's, of a body that is no UTF-8, too deep, or has too long a number
            return await refuse(request, ProblemError(422, "not_json", "the body cannot be read as JSON in UTF-8"))
        reason, detail = {
            404: ("no_such_path", "there is no such path: /openapi.json lists those that there are"),
            405: ("no_such_method", f"there is no {request.method} of this path: /openapi.json says what there is"),
        }.get(error.status_code, ("invalid", str(error.detail)))
        return await refuse(request, ProblemError(error.status_code, reason, detail, error.headers))

    @app.post("/predict", response_model=Predictions, responses=_PROBLEMS, summary="Rank the labels of texts")
    async def predict(request: Request, body: predict_request(limits)) -> Response:
        """Return the labels of each text, best first, in the order of the texts."""
        model, predictor, predictions = await serving.predict(request, body)
        return _json(
            {
                "version": model.version,
                "scorer": predictor.scorer,
                "predictions": [to_record(prediction) for prediction in predictions],
            }
        )

    @app.get("/labels", response_model=LabelsFound, responses=_PROBLEMS, summary="Search the labels of the model")
    async def labels(
        search: str = Query("", max_length=200, description="Words that the text or the uid of a label must have."),
        limit: int = Query(20, ge=1, le=1000, description="Most labels to return."),
        offset: int = Query(0, ge=0, description="Number of labels to leave out at the start."),
    ) -> Response:
        """Return labels in the order of the data set."""
        model = serving.slot.model
        found, more = await asyncio.to_thread(model.find_labels, search, limit, offset)
        rows = model.predictor.labels
        described = [{"id": each, "uid": rows[each][0], "text": rows[each][1]} for each in found]
        return _json({"version": model.version, "labels": described, "more": more})

    @app.get("/model", response_model=ModelDescription, responses=_PROBLEMS, summary="Describe the model")
    async def describe() -> Response:
        """Return what is served, and what the server accepts."""
        model, last = serving.slot.model, serving.slot.last_reload
        return _json(
            {
                "title": serving.title,
                "version": model.version,
                "loaded": model.loaded.isoformat(timespec="seconds"),
                "num_labels": model.predictor.num_labels,
                "scorer": model.scorer,
                "scorers": list(model.predictors),
                "explains": model.explains,
                "calibrated": sorted(model.calibrated),
                "limits": asdict(limits),
                "last_reload": None if last is None else _reloaded(last),
            }
        )

    @app.get("/health", response_model=Health, summary="Say whether the server is alive and ready")
    async def health() -> Response:
        """Return status 200 where it is both, else 503."""
        return _health(serving, ok=serving.live and serving.ready)

    @app.get("/health/live", response_model=Health, summary="Say whether the server is alive")
    async def live() -> Response:
        """Return status 503 where the server has to be started again."""
        return _health(serving, ok=serving.live)

    @app.get("/health/ready", response_model=Health, summary="Say whether the server takes requests")
    async def ready() -> Response:
        """Return status 503 where requests should go to another server for now."""
        return _health(serving, ok=serving.ready)

    @app.get("/metrics", response_class=Response, responses={401: _PROBLEMS[401]}, summary="Metrics for Prometheus")
    async def metrics() -> Response:
        """Return all metrics in the text format of Prometheus."""
        telemetry.waiting.set(serving.batcher.waiting)
        return Response(telemetry.page(), headers={"Content-Type": CONTENT_TYPE})

    @app.post("/reload", response_model=Reloaded, responses=_PROBLEMS, summary="Load the model folder again")
    async def reload() -> Response:
        """Exchange the model if the files in its folder are others; needs a server with a token."""
        if token is None:
            detail = "this server has no token, so that anybody could have the model loaded again: send it SIGHUP"
            raise ProblemError(403, "no_token", detail)
        outcome = await serving.slot.reload()
        if outcome.result == "failed":
            raise ProblemError(409, "model_not_loaded", f"the model of before goes on serving: {outcome.reason}")
        return _json(_reloaded(outcome))

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return Response(query_page(), media_type="text/html", headers={"Content-Security-Policy": policy()})

    return app


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _reloaded(outcome: ReloadOutcome) -> dict[str, Any]:
    return {
        "result": outcome.result,
        "version": outcome.version,
        "time": outcome.time.isoformat(timespec="seconds"),
        "reason": outcome.reason,
    }


def _health(serving: Serving, *, ok: bool) -> Response:
    last = serving.slot.last_reload
    content = {
        "live": serving.live,
        "ready": serving.ready,
        "version": serving.slot.model.version,
        "waiting": serving.batcher.waiting,
        # the reason names folders of the server, which are not for everybody
        "last_reload": None if last is None else last.result,
    }
    return _json(content, 200 if ok else 503)
