"""Who may call `/admin`: whoever has the key, or one with an admin scope, or a token of the login, where there is one; else whoever sits at the machine.

And who is given the board's page.

Judged by the listener that a request came in at: where the admin has one of its own (`server.admin_port`), the other serves neither.
Without a key it is served only where the gateway itself listens on loopback, and only to who asks it by a loopback name: a web page
that resolves its own name to 127.0.0.1 or posts there, or a proxy that says for whom it asks, is somebody else.
"""

from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi import Request

from config.schema import Server
from config.tenants import OTHERS, Scope, Tenant
from router.ingress import CALLER
from router.oidc.logins import Logins, Unavailable
from router.oidc.tokens import BadToken
from router.openai.access_errors import AuthFailure, bad_token, lacks_scope, token_lacks, tokens_unavailable
from router.openai.errors import ApiError, Case, wrong_admin_key
from router.tenants.caller import Caller
from router.tenants.gate import Gate

_READS = frozenset({"GET", "HEAD"})
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
_ANY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - read, not bound
LOGGED_IN = "(login)"  # in the place of a tenant, which no tenant may be called
_OWN_SITE = frozenset({"same-origin", "none"})  # of Sec-Fetch-Site; none: typed by the user


Address = tuple[str, int]


async def refuse_strangers(
    server: Server,
    request: Request,
    admin_at: Address | None = None,
    *,
    gate: Gate | None = None,
    logins: Logins | None = None,
) -> None:
    """Raises ApiError for whoever may not. `admin_at`: where the admin's own listener is, if it has one. `gate` knows the keys of
    tenants, `logins` tokens; None: there are none.
    """
    host = _listener(server, request, admin_at)
    caller = None if gate is None else gate.known(request.scope["headers"])
    if caller is None and logins is not None:
        caller = await _logged_in(logins, request)
    if caller is not None:
        _refuse_without_scope(caller, gate, request)
        request.scope.setdefault("state", {})[CALLER] = caller
        return
    if _asks(server):
        _refuse_without_key(server.admin_key, request)
        return
    _refuse_from_afar(host, request)
    if _is_of_another_page(request):
        raise ApiError(Case.NOT_FOUND, "/admin answers no other site's pages; server.admin_key changes that.")


def refuse_board(server: Server, request: Request, admin_at: Address | None = None) -> None:
    """Raises ApiError where the page would be of no use. It holds no data and asks for the key itself, so anybody may have it who reaches `/admin`."""
    host = _listener(server, request, admin_at)
    if not _asks(server):
        _refuse_from_afar(host, request)


def who(server: Server, request: Request) -> str:
    """For the audit log; never the key."""
    address = request.client.host if request.client is not None else "unknown"
    caller = request.scope.get("state", {}).get(CALLER)
    if caller is not None:
        return f"{address} by key {caller.key_id}" if caller.tenant != LOGGED_IN else f"{address} as {caller.key_id}"
    return f"{address} {'by key' if _asks(server) else 'at the machine'}"


def is_loopback(host: str) -> bool:
    """Of a name or an address, without looking anything up."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _listener(server: Server, request: Request, admin_at: Address | None) -> str:
    """The host of the listener that the request came in at; raises ApiError where that is not the admin's."""
    if admin_at is None:
        return server.host
    host, port = request.scope.get("server") or ("", 0)
    if port != admin_at[1] or (admin_at[0] not in _ANY_ADDRESS and host != admin_at[0]):
        raise ApiError(
            Case.NOT_FOUND,
            "/admin and the board have a listener of their own here: server.admin_host and server.admin_port.",
        )
    return server.admin_host


def _refuse_from_afar(host: str, request: Request) -> None:
    if not is_loopback(host):
        raise ApiError(
            Case.NOT_FOUND,
            f"/admin asks for no key, so it is served only where the gateway listens on loopback, and this one listens on {host}; "
            "set server.admin_key, or server.host to 127.0.0.1, or server.admin_port for a listener of its own, or read the file that decisions.file names.",
        )
    asked = request.url.hostname
    if (asked is not None and not is_loopback(asked)) or any(name in request.headers for name in _FORWARDED):
        raise ApiError(
            Case.NOT_FOUND,
            "/admin answers only who asks this machine by its loopback address, not through a proxy; server.admin_key changes that.",
        )


async def _logged_in(logins: Logins, request: Request) -> Caller | None:
    """None: it brings no token."""
    scheme, _, told = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return None
    try:
        bearer = await logins.bearer(told.strip())
    except BadToken as error:
        raise bad_token(error.why.value) from None
    except Unavailable:
        raise tokens_unavailable() from None
    return None if bearer is None else Caller(LOGGED_IN, bearer.name, bearer.mask, Tenant(name=OTHERS))


def _asks(server: Server) -> bool:
    """Whether anybody must show who he is, wherever he comes from."""
    return server.admin_key is not None or server.admin_oidc.enabled


def _refuse_without_scope(caller: Caller, gate: Gate | None, request: Request) -> None:
    """`admin:write` includes `admin:read`."""
    reads = request.scope["method"] in _READS
    if caller.has(Scope.ADMIN_WRITE) or (reads and caller.has(Scope.ADMIN_READ)):
        return
    if gate is not None:
        gate.refused(AuthFailure.SCOPE, request.scope.get("client"), caller.key_id)
    if caller.tenant == LOGGED_IN:
        raise token_lacks("read" if reads else "write")
    raise lacks_scope((Scope.ADMIN_READ if reads else Scope.ADMIN_WRITE).value)


def _refuse_without_key(key: str | None, request: Request) -> None:
    """None: only a token would do."""
    scheme, _, told = request.headers.get("authorization", "").partition(" ")
    # Both compared whatever the other says, and as bytes: a header may hold any.
    same = compare_digest(told.strip().encode("latin-1", "replace"), (key or "").encode())
    if key is None or not same or scheme.lower() != "bearer":
        raise wrong_admin_key()


def _is_of_another_page(request: Request) -> bool:
    """A browser says so; it lets any page post to this machine, and only hides the answer."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if site is not None and site not in _OWN_SITE:
        return True
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")
