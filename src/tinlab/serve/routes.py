"""The application: routes to the endpoints of api.py, documented at /openapi.json, and the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from tinlab import __version__, report
from tinlab.serve import images, schemas
from tinlab.serve.api import MAX_TOP, Api
from tinlab.serve.guard import SECURITY_HEADERS, Guard
from tinlab.serve.samples import Samples
from tinlab.serve.service import Service

HERE = Path(__file__).parent
PAGE = {
    "/": (HERE / "page.html", "text/html; charset=utf-8"),
    "/page.css": (HERE / "page.css", "text/css; charset=utf-8"),
    "/page.js": (HERE / "page.js", "text/javascript; charset=utf-8"),
    # The colours and type that all pages share.
    "/family.css": (Path(report.__file__).parent / "page.css", "text/css; charset=utf-8"),
}

ERRORS = {
    400: "The form, or the Host header, cannot be read.",
    403: "A page of another site posted it.",
    408: "The request came too slowly.",
    413: "Too many bytes, images or pixels.",
    415: "The body is no multipart form.",
    421: "The Host header names another server.",
    422: "A file is no image that is read, or a field has a value that it cannot have.",
    431: "The head of the request is too long.",
    500: "The model failed.",
    503: "The queue is full, or the server is stopping. Retry-After says when to try again.",
    504: "The answer took too long.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schemas.Problem, "description": ERRORS[status]} for status in statuses}


def form_body(required: str, properties: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The documentation of a multipart body, which is read by hand: see form.py."""
    schema = {"type": "object", "required": [required], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


IMAGE = {"type": "string", "contentMediaType": "application/octet-stream"}
FORMATS = f"{', '.join(images.FORMATS[:-1])} or {images.FORMATS[-1]}"
CLASSIFY_BODY = form_body(
    "images",
    {
        "images": {"type": "array", "items": IMAGE, "minItems": 1, "description": f"Files: {FORMATS}."},
        "models": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Names of models; all, where none is given.",
            "examples": [["fast_cpu"]],
        },
        "top": {"type": "integer", "minimum": 1, "maximum": MAX_TOP, "default": 5},
    },
)
EXPLAIN_BODY = form_body(
    "image",
    {
        "image": {**IMAGE, "description": f"One file: {FORMATS}."},
        "model": {"type": "string", "description": "Its name; needed where several are served."},
        "target": {
            "type": "string",
            "description": "The id of the class to explain; the likeliest, where none is given.",
            "examples": ["n01443537"],
        },
        "method": {"type": "string", "description": "One of those that /models lists; the first by default."},
        "answer": {
            "type": "string",
            "enum": ["json", "png"],
            "default": "json",
            "description": "json, or the map alone as a PNG file.",
        },
    },
)


def build(
    service: Service, samples: Samples, *, host: str = "127.0.0.1", allow_hosts: Iterable[str] = ()
) -> FastAPI:
    """The application; it starts `service` when it begins and closes it when it ends."""
    api = Api(service, samples)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, service.start)
        try:
            yield
        finally:
            await loop.run_in_executor(None, service.close)
            api.decoders.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="tinlab",
        version=__version__,
        summary="Classify images with trained networks, and see where they look.",
        description="Every error is a JSON object with a sentence in `detail`.",
        # The pages that FastAPI has for these come from a CDN.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_route_name,
    )
    app.add_middleware(Guard, host=host, allow_hosts=tuple(allow_hosts))
    app.add_exception_handler(RequestValidationError, _bad_value)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_exception_handler(Exception, _failed)

    refused = problems(400, 421, 431, 503)
    posted = problems(400, 403, 408, 413, 415, 421, 422, 431, 500, 503, 504)
    add = app.add_api_route
    add(
        "/classify",
        api.classify,
        methods=["POST"],
        response_model=schemas.Classified,
        responses=posted,
        openapi_extra=CLASSIFY_BODY,
        tags=["images"],
        summary="What is in these images?",
    )
    add(
        "/explain",
        api.explain,
        methods=["POST"],
        response_model=schemas.Explained,
        responses={**posted, 200: {"content": {"image/png": {}}, "description": "The map."}},
        openapi_extra=EXPLAIN_BODY,
        tags=["images"],
        summary="Where did a model look?",
    )
    add(
        "/models",
        api.models,
        response_model=schemas.Models,
        responses=refused,
        tags=["server"],
        summary="Which models are there?",
    )
    add(
        "/health",
        api.health,
        response_model=schemas.Health,
        responses={
            **refused,
            503: {"model": schemas.Health | schemas.Problem, "description": "It is stopping, or busy."},
        },
        tags=["server"],
        summary="Is the server well?",
    )
    add(
        "/samples",
        api.list_samples,
        response_model=schemas.Samples,
        responses={**refused, **problems(422)},
        tags=["samples"],
        summary="Which images are there to try?",
    )
    add(
        "/samples/{index}",
        api.sample,
        response_class=Response,
        responses={
            **refused,
            200: {"content": {"image/png": {}}, "description": "The image."},
            404: {"model": schemas.Problem, "description": "There is no such image."},
            422: {"model": schemas.Problem, "description": "The index is no number."},
        },
        tags=["samples"],
        summary="One of those images",
    )
    for path, (file, kind) in PAGE.items():
        add(path, _static(file, kind), include_in_schema=False)
    return app


def _static(file: Path, kind: str) -> Any:
    content = file.read_bytes()  # once, so that no request makes the server open a file

    async def answer() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return answer


def _route_name(route: APIRoute) -> str:
    return route.name


async def _bad_value(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    return JSONResponse({"detail": f"{fault['loc'][-1]}: {fault['msg']}."}, 422)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(
        {"detail": "Something is wrong in the server; its log says what."}, 500, SECURITY_HEADERS
    )
