"""Refused requests: a status and a JSON body in the form of OpenAI's API, which clients understand."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}


class RefusedError(Exception):
    """A request that is not carried out. Raise it in an endpoint; the client gets `response()`."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """`param` names the parameter that is at fault; `code` is a slug for programs."""
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers

    def body(self) -> dict[str, object]:
        """{"error": ...} as OpenAI's API has it; also sent within a stream that has begun."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return json_response(self.body(), self.status, self.headers)


def json_response(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON body in ASCII: a text may hold lone surrogates, which UTF-8 cannot encode."""
    return Response(json.dumps(values, allow_nan=False), status, headers, media_type="application/json")
