"""The body of an admin call: small, and there in time."""

import asyncio
from typing import Final

from fastapi import Request

from router.openai.errors import body_timeout, body_too_large

_MAX_BODY_BYTES: Final = 16 * 1024  # the longest describes a replica


async def admin_body(request: Request, timeout_s: float) -> bytes:
    """Raises ApiError."""
    raw = b""
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > _MAX_BODY_BYTES:
                    raise body_too_large(_MAX_BODY_BYTES)
    except TimeoutError:
        raise body_timeout(timeout_s) from None
    return raw
