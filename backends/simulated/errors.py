"""Refusals in vLLM's wire shape."""

import msgspec


class Refused(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.param = param

    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return msgspec.json.encode({"error": error})


def bad_request(message: str, param: str | None = None) -> Refused:
    return Refused(400, "BadRequestError", message, param)


def not_found(message: str, param: str | None = None) -> Refused:
    return Refused(404, "NotFoundError", message, param)
