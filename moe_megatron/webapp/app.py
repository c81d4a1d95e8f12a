"""The dashboard as an application of FastAPI: addresses, and errors in one paragraph.

What is answered is in `calls`; live frames are in `live_feed`. Every answer that reads files is
made on a thread, so that a slow disk holds up nobody else.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from moe_megatron.config.checks import join_words
from moe_megatron.errors import DataError, MoEError
from moe_megatron.webapp.access.gate import UNREACHABLE, Gate
from moe_megatron.webapp.access.login import add_login, described, user_of
from moe_megatron.webapp.access.visitors import Access
from moe_megatron.webapp.asking import add_asking
from moe_megatron.webapp.built_page import PAGE
from moe_megatron.webapp.calls import CALLS, Answer, answer
from moe_megatron.webapp.guards import Guard
from moe_megatron.webapp.inspector.call import add_inspector
from moe_megatron.webapp.inspector.inspector import AsksModels, Inspector
from moe_megatron.webapp.inspector.known_models import KnownModels
from moe_megatron.webapp.live_feed import LiveFeed
from moe_megatron.webapp.plain_page import plain_page
from moe_megatron.webapp.run_list import RunList, UnknownRunError
from moe_megatron.webapp.sharing.sharing import Sharing
from moe_megatron.webapp.view import views

_MOST_COMPARED = 8

logger = logging.getLogger(__name__)


def make_app(
    runs: RunList,
    *,
    access: Access | None = None,
    inspector: AsksModels | None = None,
    models: Sequence[Path] = (),
    names: Sequence[str] = (),
    page: Path = PAGE,
    sharing: Sharing | None = None,
) -> FastAPI:
    """The application.

    Args:
        runs: What it shows.
        access: Who may enter; None: everybody who can reach it may look.
        inspector: Asks models for the experts of tokens; whoever gives it closes it.
        models: Folders of models that may be asked, besides the checkpoints of the runs.
        names: Names under which it may be reached, besides addresses and localhost.
        page: Folder of the built page.
        sharing: Through which several processes share the news of runs; None for one alone.
    """
    # No pages of documentation: they load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    is_built = (page / "index.html").is_file()
    if access is not None:
        add_login(app, access)
        app.add_middleware(Gate, access=access, shows_page=is_built)
    app.add_middleware(Guard, names=names)  # the last one is the outermost
    _answer_errors(app)
    known = KnownModels(runs, models)
    add_inspector(app, inspector or Inspector(), known)
    _add_calls(app, runs, known)
    add_asking(app, runs, access)
    feed = LiveFeed(runs, sharing)

    @app.websocket("/api/live")
    async def live(socket: WebSocket) -> None:
        await feed.serve(socket)

    if is_built:
        app.mount("/", _Page(directory=page, html=True))
    else:

        @app.get("/")
        def plain() -> Response:
            return HTMLResponse(plain_page(runs.facts()))

    return app


def _add_calls(app: FastAPI, runs: RunList, models: KnownModels) -> None:
    @app.get("/api/runs")
    def all_runs() -> Response:
        return _json([it.to_json() for it in runs.facts()])

    @app.get("/api/views")
    def all_views() -> Response:
        return _json([{"name": it.name, "title": it.title} for it in views()])

    @app.get("/api/compare")
    def compare(request: Request) -> Response:
        words = dict(request.query_params)
        wanted = [it for it in words.pop("runs", "").split(",") if it]
        if not 1 <= len(wanted) <= _MOST_COMPARED:
            raise DataError(f"runs must name 1 to {_MOST_COMPARED} ids, with commas between them.")
        return _json({"runs": [_compared(runs, it, words) for it in wanted]})

    @app.get("/api/runs/{run_id}")
    def about(run_id: str, request: Request) -> Response:
        found = answer(runs.reader(run_id), "about", request.query_params)
        assert not isinstance(found, bytes)
        inspector = bool(found["checkpoints"] or models.given())
        has = {**found["has"], "inspector": inspector}
        return _json({**found, "has": has, "user": described(user_of(request))})

    @app.get("/api/runs/{run_id}/{call}")
    def one(run_id: str, call: str, request: Request) -> Response:
        if call not in CALLS:
            raise HTTPException(
                404, f"there is no such call; there are {join_words(list(CALLS), 'and')}."
            )
        return _answered(answer(runs.reader(run_id), call, request.query_params))

    @app.get("/api/{rest:path}")
    def nothing(rest: str) -> Response:
        raise HTTPException(404)


def _compared(runs: RunList, wanted: str, words: dict[str, str]) -> dict[str, Any]:
    reader = runs.reader(wanted)
    layers, series = (answer(reader, call, words) for call in ("layers", "series"))
    assert not isinstance(layers, bytes)
    assert not isinstance(series, bytes)
    return {
        "id": wanted,
        "steps": series["steps"],
        "loss": series["loss"],
        "layers": layers["layers"],
        "layer_steps": layers["steps"],
        "max_over_mean": layers["max_over_mean"],
    }


def _answered(found: Answer) -> Response:
    if isinstance(found, bytes):
        response = Response(found, media_type="application/octet-stream")
        response.headers["cache-control"] = "no-store"
        return response
    return _json(found)


def _json(found: Any, status: int = 200) -> Response:
    return JSONResponse(found, status, headers={"cache-control": "no-store"})


class _Page(StaticFiles):
    """The built page; names of its assets hold a hash of what is in them."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        kept = path.startswith("assets/") and response.status_code == 200
        response.headers["cache-control"] = "max-age=31536000, immutable" if kept else "no-cache"
        return response


_SAID = {
    404: "there is nothing at this address; the dashboard is at / and its data at /api/runs.",
    405: "this address takes no such request; docs/dashboard.md says which ones there are.",
}


def _answer_errors(app: FastAPI) -> None:
    def refused(request: Request, error: Exception) -> Response:
        return _json({"error": str(error)}, 404 if isinstance(error, UnknownRunError) else 400)

    def by_status(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        given = error.detail if error.detail.endswith(".") else ""
        said = given or _SAID.get(error.status_code, "this request cannot be answered.")
        return _json({"error": said}, error.status_code)

    def malformed(request: Request, error: Exception) -> Response:
        return _json({"error": "this request is malformed; see docs/dashboard.md."}, 400)

    def unreadable(request: Request, error: Exception) -> Response:
        logger.warning("a file of a run cannot be read: %s", error)
        return _json({"error": "a file of the run cannot be read; ask again in a moment."}, 503)

    def unreachable(request: Request, error: Exception) -> Response:
        logger.warning("the database of those who may look: %s", error)
        return _json({"error": UNREACHABLE}, 503)

    def ours(request: Request, error: Exception) -> Response:
        logger.error("the dashboard failed to answer %s", request.url.path, exc_info=error)
        said = "the dashboard failed to answer; its own output says why."
        return _json({"error": said}, 500)

    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Response]]] = [
        (MoEError, refused),
        (HTTPException, by_status),
        (RequestValidationError, malformed),
        (OSError, unreadable),
        (SQLAlchemyError, unreachable),
        (Exception, ours),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
