"""The board's page: what is at `/` for a browser, and the files it is made of.

The page holds no data. It reads `/admin/live` and asks for the key where there is one, so it is served wherever `/admin` could be
reached (`router.admin_access`); elsewhere `/` says why not, in JSON, as it does to whoever is no browser.
"""

from hashlib import blake2b
from importlib.resources import files
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from router.admin_access import refuse_board
from router.gateway import Gateway
from router.openai.errors import ApiError, Case

PAGE: Final = "index.html"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline: what a model says can at worst be text. Images: the icon, and the marks in the style sheet.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again each time, by its tag: a new release is never half of the old one
}
_ENDPOINTS: Final = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/livez", "/readyz", "/metrics",
    "/metrics/vllm",
)  # fmt: skip


class Asset:
    """One file, as it is sent."""

    def __init__(self, name: str, body: bytes) -> None:
        self.body = body
        self.tag = f'"{blake2b(body, digest_size=12).hexdigest()}"'
        self.headers = {**_HEADERS, "etag": self.tag, "content-type": _TYPES[name[name.rindex(".") :]]}

    def response(self, request: Request) -> Response:
        """304 to whoever has it."""
        known = request.headers.get("if-none-match", "")
        if known.strip() == "*" or self.tag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers={k: v for k, v in self.headers.items() if k != "content-type"})
        return Response(self.body, headers=self.headers)


def assets() -> dict[str, Asset]:
    """By name; some tens of kilobytes, kept in memory."""
    folder = files("router.board").joinpath("static")
    return {entry.name: Asset(entry.name, entry.read_bytes()) for entry in folder.iterdir()}


def add_page(api: FastAPI, gateway: Gateway) -> None:
    """`/`, `/board` and the files below it."""
    found = assets()

    @api.get("/", include_in_schema=False, response_model=None)
    async def landing(request: Request) -> Response:
        why_not: str | None = None
        try:
            refuse_board(gateway.config.server, request, gateway.admin_at)
        except ApiError as refusal:
            why_not = str(refusal)
        if why_not is None and prefers_html(request.headers.get("accept", "")):
            page = found[PAGE].response(request)
        else:
            page = JSONResponse(_landing(api.version, why_not))
        page.headers["vary"] = "accept"
        return page

    @api.get("/board", include_in_schema=False, response_model=None)
    async def board(request: Request) -> Response:
        refuse_board(gateway.config.server, request, gateway.admin_at)
        return found[PAGE].response(request)

    @api.get("/board/{name}", include_in_schema=False, response_model=None)
    async def asset(name: str, request: Request) -> Response:
        refuse_board(gateway.config.server, request, gateway.admin_at)
        if name not in found:
            raise ApiError(Case.NOT_FOUND, "The board has no such file.")
        return found[name].response(request)


def prefers_html(accept: str) -> bool:
    """Whether it names text/html, and nothing of JSON before it: a browser does, `*/*` and an SDK do not."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        if kind in weights:
            weights[kind] = max(weights[kind], _weight(parameters))
    return weights["text/html"] > 0 and weights["text/html"] >= weights["application/json"]


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _landing(version: str, why_not: str | None) -> dict[str, object]:
    board = "open this address in a browser" if why_not is None else f"not served here: {why_not}"
    return {"name": "penstock", "version": version, "docs": "/docs", "board": board, "endpoints": list(_ENDPOINTS)}
