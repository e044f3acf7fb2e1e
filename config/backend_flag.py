"""`--backend NAME=URL[,key=value]...` as the replica that a file would describe. Decides its grammar; the schema judges values."""

from difflib import get_close_matches

from config.problems import ConfigError

EXAMPLE = "h100=http://127.0.0.1:8000,gpu=H100-80G,tier=reserved,usd=2.5"

_BY_SCHEME = {"http": "vllm", "https": "vllm", "grpc": "triton", "grpcs": "triton"}
_KEYS = ("gpu", "tier", "usd", "backend", "model")


def parse_backend_flag(text: str) -> dict[str, object]:
    """The flag as a `replicas` item; `model` may be given more than once. Raises ConfigError."""
    address, *options = text.split(",")
    name, separator, url = address.partition("=")
    if not separator or not name or not url:
        raise _bad(text, f"write NAME=URL[,key=value]..., such as {EXAMPLE}")
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if scheme not in _BY_SCHEME:
        raise _bad(text, f"the URL must begin with {', '.join(f'{s}://' for s in _BY_SCHEME)}")
    given: dict[str, str] = {}
    models: list[str] = []
    for option in options:
        key, separator, value = option.partition("=")
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, n=1)
            raise _bad(
                text, f"unknown `{key}`; {f'did you mean `{near[0]}`?' if near else 'known: ' + ', '.join(_KEYS)}"
            )
        if not separator or not value:
            raise _bad(text, f"`{key}` has no value; write {key}=VALUE")
        if key in given:
            raise _bad(text, f"`{key}` is given twice; keep one")
        if key == "model":
            models.append(value)
        else:
            given[key] = value
    return _replica(name, url, given.get("backend", _BY_SCHEME[scheme]), given, models)


def _replica(name: str, url: str, backend: str, given: dict[str, str], models: list[str]) -> dict[str, object]:
    replica: dict[str, object] = {"name": name, "backend": backend, "url": url}
    if "gpu" in given:
        replica["gpu"] = {"type": given["gpu"]}
    cost = {key: given[flag] for flag, key in (("tier", "tier"), ("usd", "usd_per_hour")) if flag in given}
    if cost:
        replica["cost"] = cost
    if models:
        replica["models"] = models
    return replica


def _bad(text: str, why: str) -> ConfigError:
    return ConfigError([f"--backend {text!r}: {why}"])
