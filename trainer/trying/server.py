"""The page of `trainer try`, for this machine alone.

It listens on loopback. A request that names another host is refused: a name that somebody points at 127.0.0.1 reaches nothing. A page of
another site can send nothing either. Files are served by name from this package, never from a folder, and nothing that is sent is kept.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from jinja2 import Environment, PackageLoader
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.choices import ConfigError
from trainer.trying.forms import Form

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost")
# Bytes of what is sent.
LARGEST = 256 * 1024
# While requests that have begun are answered, at the end.
_GRACE_SECONDS = 3

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Page:
    """What is shown. name: of the run; suggestions: examples that can be put into the form, in the words of its inputs."""

    def __init__(self, form: Form, name: str, suggestions: list[dict[str, str]]):
        self.form, self.name, self.suggestions = form, name, suggestions
        environment = Environment(loader=PackageLoader("trainer.trying", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True)
        self.template = environment.get_template("page.html")
        # The model answers one person at a time.
        self.lock = threading.Lock()

    def rendered(self, values: Mapping[str, str], shown: Mapping[str, Any], status: int = 200) -> Response:
        """values: what stands in the inputs; shown: what `Form.answer` gave, or an error."""
        text = self.template.render(form=self.form, name=self.name, suggestions=self.suggestions, values=values, shown=shown)
        return HTMLResponse(text, status)

    async def get(self, request: Request) -> Response:
        """The empty form, or one with an example in it."""
        asked = request.query_params.get("example", "")
        number = int(asked) if asked.isdecimal() else len(self.suggestions)
        return self.rendered(self.suggestions[number] if number < len(self.suggestions) else {}, self.form.standing({}))

    async def post(self, request: Request) -> Response:
        """The form as it was sent, with the answer."""
        if request.headers.get("origin", f"http://{request.headers['host']}") != f"http://{request.headers['host']}":
            raise HTTPException(403, "sent from another site")
        values = await sent(request)
        try:
            shown = await run_in_threadpool(self._answered, values)
        except ConfigError as error:
            return self.rendered(values, self.form.standing(values) | {"error": str(error)}, 422)
        return self.rendered({} if shown["view"] == "chat" else values, shown)

    def _answered(self, values: Mapping[str, str]) -> dict[str, Any]:
        with self.lock:
            return self.form.answer(self.form.read(values))


async def sent(request: Request) -> dict[str, str]:
    """The fields of a form; of a name that is given twice, the first."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST:
            raise HTTPException(413, f"more than {LARGEST:,} bytes")
    try:
        return {name: given[0] for name, given in parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20).items()}
    except ValueError as error:
        raise HTTPException(400, "no form") from error


def application(page: Page) -> Starlette:
    """The page with its style and its script."""

    def file(name: str, kind: str) -> Route:
        text = files("trainer.trying").joinpath(name).read_text(encoding="utf-8")

        async def given(_: Request) -> Response:
            return Response(text, media_type=kind)

        return Route(f"/{name}", given)

    routes = [
        Route("/", page.get),
        Route("/", page.post, methods=["POST"]),
        file("page.css", "text/css"),
        file("page.js", "text/javascript"),
    ]
    return Starlette(
        routes=routes, middleware=[Middleware(Secured), Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False)]
    )


class Secured:
    """Every answer tells the browser to load nothing from elsewhere, and to keep nothing."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


def listening(port: int) -> socket.socket:
    """A socket on loopback. Raises ConfigError where the port is taken."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((LOOPBACK, port))
    except OSError as error:
        found.close()
        raise ConfigError(f"port: {port} on {LOOPBACK}: {error.strerror}; name another, e.g. port={port + 1}, or port=0 for any") from error
    found.listen()
    return found


def serve(page: Page, at: socket.socket) -> None:
    """Answer until Ctrl-C."""
    settings = uvicorn.Config(
        application(page), log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[at])
