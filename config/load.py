"""The configuration from where it is said: flags > environment (`PENSTOCK_SECTION__KEY`) > YAML file > defaults.

The only reader of the environment. Every problem is found before anything is used, and reported in one ConfigError.
Secrets (`api_key: env:NAME` or `file:/path`) are resolved here and shown nowhere (`redacted_yaml`).
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource

from config.backend_flag import parse_backend_flag
from config.problems import SECRET_HEADERS, SECRET_KEYS, ConfigError, KeyPath, dotted, explain
from config.schema import BackendKind, Config, Cost, CostTier, Gpu, ModelSpec, ReplicaConfig
from config.tracing import from_environment, wanted
from config.yaml_file import read_mapping

__all__ = [
    "ConfigError",
    "embedded_default",
    "is_embedded",
    "load",
    "parse_backend_flag",
    "redacted_yaml",
    "referenced_secret",
]

PREFIX = "PENSTOCK_"
CONFIG_VARIABLE = "PENSTOCK_CONFIG"  # path of the file, where no --config is given
_TESTS_PREFIX = "PENSTOCK_ENGINES"  # where the tests' real engines are; nothing of the gateway's
# Kubernetes tells each pod of each Service in these names; a Service called penstock must not stop the gateway.
_SERVICE_LINK = re.compile(
    r"PENSTOCK(_[A-Z0-9_]+)?_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
_MAX_SECRET_BYTES = 16 * 1024  # more than any header may hold
_REDACTED = "***"
_EACH = "*"
# Where sections are that may hold one of SECRET_KEYS. Not looked for elsewhere: a file of aliases of aliases has no end.
_SECRET_PLACES: tuple[KeyPath, ...] = (
    ("server",),
    ("auth",),
    ("auth", "keys_redis"),
    ("auth", "keys_redis", "sentinel"),
    ("redis",),
    ("redis", "sentinel"),
    ("replicas", _EACH),
    ("discovery", "dns", _EACH, "replica"),
    ("discovery", "kubernetes", _EACH, "replica"),
    SECRET_HEADERS,
)
_JSON_TYPES: Mapping[object, str] = {tuple: "list", dict: "object"}
_Secret = tuple[KeyPath, dict[str, Any], str]  # (key path, the section, key)


def load(
    path: Path | None = None, flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """The configuration, valid; raises ConfigError with every problem found.

    `flags` is nested as the file is; its `replicas` replace the file's of the same name or are appended. Without a file and without
    replicas from anywhere: `embedded_default`'s.
    """
    environ = os.environ if environ is None else environ  # noqa: TID251 -- the one place
    if path is None and environ.get(CONFIG_VARIABLE):
        path = Path(environ[CONFIG_VARIABLE])
    said = {} if path is None else read_mapping(path)
    from_environment, origins, problems = _environment(environ, ours=_secret_names(said, environ))
    said = _merge(said, from_environment)
    _add_flags(said, flags or {}, origins)
    if path is None and "replicas" not in said:
        said["replicas"] = [replica.model_dump() for replica in embedded_default().replicas]
    elif not said.get("replicas") and not said.get("discovery"):
        problems.append(
            "replicas: empty; describe at least one (config/example.yaml), give --backend NAME=URL, or say under `discovery` where they are found"
        )
        said.pop("replicas", None)
    problems += _add_opentelemetry(said, environ, origins)
    problems += _resolve_secrets(said, environ)
    try:
        config = Config.model_validate(said)
    except ValidationError as error:
        raise ConfigError([*problems, *explain(error, origins)]) from None  # its text may show a secret
    if problems:
        raise ConfigError(problems)
    return config


def embedded_default() -> Config:
    """What runs without a word of configuration: one model on three simulated replicas, a tier each, no GPU needed."""
    machines = (
        ("h100-reserved", "H100-80G", CostTier.RESERVED, 2.50, 4.00),
        ("a100-on-demand", "A100-80G", CostTier.ON_DEMAND, 3.00, None),
        ("a100-spot", "A100-80G", CostTier.SPOT, 1.20, None),  # on demand it costs what the one above does
    )
    return Config(
        replicas=tuple(
            ReplicaConfig(
                name=name,
                backend=BackendKind.SIMULATED,
                models=(ModelSpec(name="sim-8b"),),
                gpu=Gpu(type=gpu),
                cost=Cost(tier=tier, usd_per_hour=usd, on_demand_usd_per_hour=on_demand_usd),
            )
            for name, gpu, tier, usd, on_demand_usd in machines
        )
    )


def is_embedded(config: Config) -> bool:
    """Whether it runs the embedded default's replicas."""
    return config.replicas == embedded_default().replicas


def redacted_yaml(config: Config) -> str:
    """The whole configuration, defaults included, as YAML that `load` reads back; secrets are `***`."""
    document = config.model_dump(mode="json")
    for _, holder, key in list(_secrets(document)):
        holder[key] = _REDACTED
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes names readably, but U+0085 escaped: PyYAML leaves it bare, and reads it back as an end of line."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Quoted so that it comes back as it was."""
        style = '"' if "\x85" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


class _Settings(Config, BaseSettings):  # type: ignore[misc]  # both are BaseModels; their model_configs merge
    """Config's fields, for pydantic-settings."""


class _Variables(EnvSettingsSource):
    """pydantic-settings' reading of nested names and JSON, over a given mapping; an empty variable counts as unset."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(_Settings, env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items() if value}


def _environment(
    environ: Mapping[str, str], *, ours: frozenset[str]
) -> tuple[dict[str, Any], dict[KeyPath, str], list[str]]:
    """(values, which variable each came from, problems). `ours`: variables that secrets are read from."""
    known = dict(_settable(Config))
    good: dict[str, str] = {}
    origins: dict[KeyPath, str] = {}
    problems: list[str] = []
    for name, value in sorted(environ.items()):
        if not name.upper().startswith(PREFIX) or name in ours or _is_for_others(name, value):
            continue
        path = tuple(name[len(PREFIX) :].lower().split("__"))
        problem = _variable_problem(name, value, path, known)
        if problem:
            problems.append(problem)
        elif value:
            good[name] = value
            origins[path] = name
    return _Variables(good)(), origins, problems


def _settable(section: type[BaseModel]) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Key paths that a variable can set, and the JSON it must hold: list, object or (None) none."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield (name,), "object"
            yield from (((name, *below), json_type) for below, json_type in _settable(field.annotation))
        else:
            yield (name,), _JSON_TYPES.get(get_origin(field.annotation))


def _is_for_others(name: str, value: str) -> bool:
    return (
        name == CONFIG_VARIABLE
        or name.startswith(_TESTS_PREFIX)
        or _SERVICE_LINK.fullmatch(name) is not None
        or (name.endswith("_PORT") and _SERVICE_ADDRESS.match(value) is not None)
    )


def _variable_problem(
    name: str, value: str, path: tuple[str, ...], known: Mapping[tuple[str, ...], str | None]
) -> str | None:
    if path not in known:
        if path[0] == "replicas":
            return f"{name}: replicas is a list; give all of it as JSON in {PREFIX}REPLICAS"
        names = {PREFIX + "__".join(key).upper(): key for key in known}
        last = next((other for other, key in names.items() if key[-1] == path[-1]), None)
        near = next(iter(get_close_matches(name.upper(), names, n=1, cutoff=0.8)), None)
        meant = (last or near) if len(path) == 1 else (near or last)  # PENSTOCK_PORT lacks its section
        hint = (
            f"did you mean {meant}?" if meant else "`penstock schema` lists what can be set, as PENSTOCK_SECTION__KEY"
        )
        return f"{name}: sets nothing; {hint}"
    wanted = known[path]
    if wanted is None or not value:
        return None
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, list if wanted == "list" else dict):
        return f"{name}: not a JSON {wanted}; write {'[...]' if wanted == 'list' else '{...}'}, names and texts in double quotes"
    return None


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _add_flags(said: dict[str, Any], flags: Mapping[str, object], origins: dict[KeyPath, str]) -> None:
    """Changes `said` and `origins`: flags over what they hold, replicas by name."""
    settings = {key: value for key, value in flags.items() if key != "replicas"}
    said.update(_merge(said, settings))
    for path in _leaves(settings):
        origins[path] = "the command line"
    replicas = flags.get("replicas")
    if not isinstance(replicas, list | tuple) or not replicas:
        return
    listed = said.get("replicas")
    items: list[object] = list(listed) if isinstance(listed, list | tuple) else []
    names = {str(item.get("name")): index for index, item in enumerate(items) if isinstance(item, dict)}
    for replica in replicas:
        index = names.get(replica["name"])
        if index is None:
            index = len(items)
            items.append(replica)
        else:
            items[index] = replica
        origins["replicas", index] = "--backend"
    said["replicas"] = items


def _add_opentelemetry(said: dict[str, Any], environ: Mapping[str, str], origins: dict[KeyPath, str]) -> list[str]:
    """Puts OpenTelemetry's own variables below what is said, where traces are asked for; returns what is wrong with them."""
    section = said.get("tracing")
    if not isinstance(section, dict) or not wanted(section):
        return []
    values, names, problems = from_environment(environ)
    for key, name in names.items():
        if key not in section:
            origins["tracing", key] = name
    said["tracing"] = _merge(values, section)
    return problems


def _leaves(values: Mapping[str, object], above: KeyPath = ()) -> Iterator[KeyPath]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key)


def _secrets(value: object, places: Iterable[KeyPath] = _SECRET_PLACES) -> Iterator[_Secret]:
    """Each that is given as text."""
    for place in places:
        yield from _secrets_at(value, place, ())


def _secrets_at(value: object, place: KeyPath, above: KeyPath) -> Iterator[_Secret]:
    if place:
        items: Iterable[tuple[str | int, object]] = ()
        if isinstance(value, list | tuple) and place[0] == _EACH:
            items = enumerate(value)
        elif isinstance(value, dict) and place[0] in value:
            items = [(place[0], value[place[0]])]
        for key, item in items:
            yield from _secrets_at(item, place[1:], (*above, key))
    elif isinstance(value, dict):
        names = [name for name in value if isinstance(name, str)] if above == SECRET_HEADERS else sorted(SECRET_KEYS)
        for name in names:
            if isinstance(value.get(name), str):
                yield (*above, name), value, name


def _secret_names(said: Mapping[str, object], environ: Mapping[str, str]) -> frozenset[str]:
    """Variables that secrets are read from: settings of nobody else's."""
    in_file = [holder[key] for _, holder, key in _secrets(said)]
    ours = (value for name, value in environ.items() if name.upper().startswith(PREFIX))
    in_variables = (name for value in ours for name in re.findall(r"env:\w+", value))
    return frozenset(text.removeprefix("env:") for text in (*in_file, *in_variables) if text.startswith("env:"))


def _resolve_secrets(said: dict[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Puts secrets in place of their references; returns what could not be resolved."""
    for place in _SECRET_PLACES:
        said.update(_copied(said, place))
    problems: list[str] = []
    for path, holder, key in _secrets(said):
        try:
            holder[key] = _secret(holder[key], environ)
        except ValueError as error:
            problems.append(f"{dotted(path)}: {error}")
            holder[key] = None
    return problems


def _copied(value: Any, place: KeyPath) -> Any:
    """The way to a place is its own: YAML aliases let two replicas share one mapping."""
    if not place:
        return dict(value) if isinstance(value, dict) else value
    if isinstance(value, dict):
        return {key: _copied(item, place[1:]) if key == place[0] else item for key, item in value.items()}
    if isinstance(value, list) and place[0] == _EACH:
        return [_copied(item, place[1:]) for item in value]
    return value


def referenced_secret(reference: str, environ: Mapping[str, str] | None = None) -> str:
    """What `env:NAME` or `file:/path` refers to; raises ValueError, also for a secret itself: a command line is no place for one."""
    if not reference.startswith(("env:", "file:")):
        raise ValueError("write env:NAME or file:/path; a key itself would be seen by everybody who lists processes")
    return _secret(reference, os.environ if environ is None else environ)  # noqa: TID251 -- the one place


def _secret(text: str, environ: Mapping[str, str]) -> str:
    kind, _, rest = text.partition(":")
    if kind == "env":
        value = environ.get(rest)
        if not value:
            raise ValueError(f"the environment variable {rest} is not set; export it, or remove the key")
        return value
    if kind == "file":
        try:
            with Path(rest).open("rb") as file:
                value = file.read(_MAX_SECRET_BYTES + 1).decode().strip()
        except OSError as error:
            raise ValueError(f"{rest}: {error.strerror or error}; check the path after file:") from None
        except UnicodeDecodeError:
            raise ValueError(f"{rest}: not text; the file must hold the key alone") from None
        if len(value) > _MAX_SECRET_BYTES:
            raise ValueError(f"{rest}: larger than any key; the file must hold the key alone")
        if not value:
            raise ValueError(f"{rest}: empty; the file must hold the key alone")
        return value
    return text
