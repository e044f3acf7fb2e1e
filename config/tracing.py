"""The section `tracing`: whether requests are told to an OpenTelemetry collector, where that is and how much of them (docs/tracing.md).

OpenTelemetry's own variables are understood, below everything that is said in Penstock's way; `config.load` hands them here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, Self
from urllib.parse import unquote, urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from config.checks import Problem, address_problem, refusal
from config.section import Section

_TRACES_PATH: Final = "/v1/traces"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
# The more particular name wins, as OpenTelemetry says.
_VARIABLES: Final = (
    ("endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ("endpoint", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    ("protocol", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    ("protocol", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
    ("headers", "OTEL_EXPORTER_OTLP_HEADERS"),
    ("headers", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
    ("timeout_s", "OTEL_EXPORTER_OTLP_TIMEOUT"),
    ("timeout_s", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
    ("compression", "OTEL_EXPORTER_OTLP_COMPRESSION"),
    ("compression", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"),
    ("certificate", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
    ("certificate", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"),
    ("resource", "OTEL_RESOURCE_ATTRIBUTES"),
    ("service_name", "OTEL_SERVICE_NAME"),
)
_YES: Final = frozenset({"1", "true", "t", "yes", "y", "on"})  # as pydantic reads them


class Tracing(Section):
    """OpenTelemetry traces, a tree of spans for each request; needs `pip install 'penstock[otel]'`."""

    enabled: bool = False
    endpoint: str = Field(
        "http://localhost:4318", description="of the collector; without a path it is OTLP's own, /v1/traces"
    )
    protocol: Literal["http/protobuf"] = "http/protobuf"
    headers: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="sent with each export, such as a key; `env:NAME` or `file:/path` keep it out of this file",
    )
    certificate: str | None = Field(
        None, description="a file with the authority that signed the collector's; null: the system's"
    )
    compression: Literal["none", "gzip", "deflate"] = "none"
    timeout_s: PositiveFloat = Field(10.0, description="for one export, its repeats included")
    service_name: str = Field("penstock", min_length=1)
    resource: dict[str, str] = Field(
        default_factory=dict, description="said of the whole gateway, such as {deployment.environment.name: prod}"
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="of requests that come without a trace of their own; a client's word counts else"
    )
    content: bool = Field(False, description="true: prompts and answers go to the collector, too")
    content_bytes: PositiveInt = Field(32_768, description="of each prompt and each answer, where content is true")
    queue_requests: PositiveInt = Field(
        2048, description="that wait for export; more are dropped, and counted in a log line"
    )
    batch_requests: PositiveInt = Field(64, description="exported at once, some six spans each")
    delay_s: PositiveFloat = Field(1.0, description="until a batch that is not full is exported")
    flush_timeout_s: PositiveFloat = Field(3.0, description="at the end, for what is not exported yet; then it is lost")

    @property
    def url(self) -> str:
        """Where spans are posted to."""
        plain = urlsplit(self.endpoint).path in {"", "/"}
        return self.endpoint.rstrip("/") + _TRACES_PATH if plain else self.endpoint

    @field_validator("endpoint")
    @classmethod
    def _an_address(cls, endpoint: str) -> str:
        if "@" in urlsplit(endpoint).netloc:
            raise refusal("endpoint", [((), "carries a user or password; put the credential in `headers`")])
        problem = address_problem(endpoint, ("http", "https"), "give the collector's")
        if problem:
            raise refusal("endpoint", [((), problem)])
        return endpoint

    @field_validator("headers")
    @classmethod
    def _can_be_sent(cls, headers: dict[str, str]) -> dict[str, str]:
        problems = list(_header_problems(headers))
        if problems:
            raise refusal("headers", problems)
        return headers

    @model_validator(mode="after")
    def _a_batch_fits(self) -> Self:
        if self.batch_requests > self.queue_requests:
            what = f"{self.batch_requests} is more than queue_requests holds; give {self.queue_requests} or less"
            raise refusal("tracing", [(("batch_requests",), what)])
        return self


def _header_problems(headers: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            yield (), f"{name[:40]!r} is no header's name; write letters, digits and dashes"
        elif not value or not value.isascii() or not value.isprintable() or value != value.strip():
            yield (name,), "empty, or has line breaks or other characters that no HTTP header can carry"


def wanted(said: object) -> bool:
    """Whether the section, as it is written, asks for traces; only then is OpenTelemetry's environment of interest."""
    enabled = said.get("enabled") if isinstance(said, Mapping) else None
    return str(enabled).lower() in _YES


def from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """(values, the variable of each, problems) of OpenTelemetry's own variables; an empty one counts as unset."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for key, name in _VARIABLES:
        text = environ.get(name, "").strip()
        if not text:
            continue
        origins[key] = name
        if name == "OTEL_EXPORTER_OTLP_ENDPOINT":  # of all signals
            values[key] = text.rstrip("/") + _TRACES_PATH
        elif key in {"headers", "resource"}:
            pairs = _pairs(text)
            if pairs is None:
                problems.append(f"{name}: not a list of name=value, with commas between")
            else:
                values[key] = pairs
        elif key == "timeout_s":  # milliseconds, by the specification
            values[key] = int(text) / 1e3 if text.isdecimal() else text
        else:
            values[key] = text
    service = values.get("resource", {}).pop("service.name", None)
    if service:
        values.setdefault("service_name", service)
    problems += _sampler(environ, values, origins)
    return values, origins, problems


def _sampler(environ: Mapping[str, str], values: dict[str, Any], origins: dict[str, str]) -> list[str]:
    name, ratio = environ.get("OTEL_TRACES_SAMPLER", "").strip(), environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if name == "parentbased_traceidratio" and ratio:
        values["sample_ratio"], origins["sample_ratio"] = ratio, "OTEL_TRACES_SAMPLER_ARG"
    elif name not in {"", "parentbased_traceidratio", "parentbased_always_on"}:
        return [
            f"OTEL_TRACES_SAMPLER: {name[:40]!r} is not known here; write parentbased_traceidratio, or set tracing.sample_ratio"
        ]
    return []


def _pairs(text: str) -> dict[str, str] | None:
    """`a=1,b=two%20words`; None where it is not that."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not part.strip():
            continue
        if not equals or not name.strip():
            return None
        found[unquote(name.strip())] = unquote(value.strip())
    return found
