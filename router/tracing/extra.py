"""The extra `otel`: whether it is there, and the one place that loads it - where traces are on, and nowhere else."""

from importlib.util import find_spec
from ssl import create_default_context

from config.schema import Config
from router.tracing.tracer import SpanSink

_WANTED = "opentelemetry.sdk.trace"


def problem(config: Config) -> str | None:
    """Why traces that are asked for cannot be had, with what to do; None: all is well."""
    if not config.tracing.enabled:
        return None
    try:
        there = find_spec(_WANTED) is not None
    except ModuleNotFoundError:
        there = False
    if there:
        return _certificate_problem(config.tracing.certificate)
    return (
        "tracing.enabled: OpenTelemetry is not installed; pip install 'penstock[otel]', or set tracing.enabled to false"
    )


def _certificate_problem(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        create_default_context(cafile=path)
    except OSError as error:  # SSLError is one
        return f"tracing.certificate: {path} can't be used ({error.strerror or error}); give a file of PEM certificates"
    return None


def exporter(config: Config, version: str) -> SpanSink:
    """Raises ImportError where `problem` has one."""
    from router.tracing.export import Exporter  # noqa: PLC0415 - heavy, and not everybody has it

    return Exporter(config.tracing, version, workers=config.server.workers)
