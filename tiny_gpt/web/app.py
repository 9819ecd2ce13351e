"""An application out of routes: every request passes the checks of access.py first, every answer has strict headers."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from tiny_gpt.web.access import Access
from tiny_gpt.web.errors import RefusedError

# Scripts, styles and pictures from this server only, none inline; no page may show ours inside its own.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# A request may be this long unless an application says otherwise: a few hundred pages of text.
MAX_BODY_BYTES = 1 << 20
KEY_PARAMETER = "key"
# Monitoring asks for it before it has a key, and it says nothing about the server's use.
OPEN_PATHS = frozenset({"/health"})


def web_app(
    routes: Sequence[BaseRoute],
    access: Access,
    max_body_bytes: int = MAX_BODY_BYTES,
    lifespan: Lifespan[Starlette] | None = None,
) -> ASGIApp:
    """An ASGI application that serves `routes` to those whom `access` lets in. Endpoints may raise RefusedError."""
    middleware = [
        Middleware(
            CORSMiddleware,
            allow_origins=sorted(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        ),
        Middleware(_KeyCheck, access=access),
    ]
    handlers: Mapping[Any, Any] = {
        RefusedError: _refused,
        HTTPException: _http_error,
        ClientDisconnect: _gone,
        Exception: _unexpected,
    }
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    return _Guard(app, access, max_body_bytes)


class _Guard:
    """Outermost: refuses foreign hosts and pages, limits the body, and gives every answer the security headers."""

    def __init__(self, app: ASGIApp, access: Access, max_body_bytes: int) -> None:
        self._app, self._access, self._max_body_bytes = app, access, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    answer.setdefault(name, value)
                if answer.get("content-type", "").startswith(("application/json", "text/event-stream")):
                    answer.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._access.check_page(headers)
            self._check_length(int(headers.get("content-length", "0")))
        except RefusedError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        await self._app(scope, self._counted(receive), send_with_headers)

    def _check_length(self, n_bytes: int) -> None:
        if n_bytes > self._max_body_bytes:
            # The rest is not read: the connection ends.
            raise RefusedError(
                413,
                f"the request has more than {self._max_body_bytes:,} bytes",
                "request-too-large",
                headers={"Connection": "close"},
            )

    def _counted(self, receive: Receive) -> Receive:
        """`receive` that raises RefusedError when a body without a stated length becomes too long."""
        n_bytes = 0

        async def receive_counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            self._check_length(n_bytes)
            return message

        return receive_counted


class _KeyCheck:
    """After CORS, whose preliminary requests carry no key. A link with ?key=KEY signs a browser in, by a cookie."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._access.api_key and scope["path"] not in OPEN_PATHS:
            response = self._sign_in(scope)
            try:
                if response is None:
                    self._access.check_key(Headers(scope=scope))
            except RefusedError as error:
                response = error.response()
            if response is not None:
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _sign_in(self, scope: Scope) -> Response | None:
        """Redirect to the same address without the key, so that it stays out of the browser's history."""
        fields = parse_qsl(scope["query_string"].decode("latin-1"))
        if scope["method"] != "GET" or not self._access.is_key(dict(fields).get(KEY_PARAMETER, "")):
            return None
        rest = urlencode([(name, value) for name, value in fields if name != KEY_PARAMETER])
        # One slash: a path that begins with two would be another server's address.
        path = "/" + scope["path"].lstrip("/\\")
        response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303, {"Cache-Control": "no-store"})
        # Lax: strict cookies would be missing from the redirected request if the link stood on another site's page.
        response.set_cookie(
            self._access.cookie_name,
            self._access.cookie_value,
            httponly=True,
            samesite="lax",
            secure=scope["scheme"] == "https",
        )
        return response


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: f"nothing is at {request.url.path[:200]}", 405: f"{request.method} is not possible here"}
    message = messages.get(error.status_code, str(error.detail))
    slugs = {404: "not-found", 405: "method-not-allowed"}
    code = slugs.get(error.status_code, "request-failed")
    return RefusedError(error.status_code, message, code, headers=error.headers).response()


async def _gone(_: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the client left before its request was complete


async def _unexpected(_: Request, _error: Exception) -> Response:
    # uvicorn logs the traceback.
    return RefusedError(500, "the server made a mistake; its log has more", "unexpected").response()
