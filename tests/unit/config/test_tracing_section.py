"""The section `tracing`: OpenTelemetry's own variables, secrets in headers, and what is wrong with both."""

from pathlib import Path

import pytest

from config.load import ConfigError, load, redacted_yaml

ON = {"tracing": {"enabled": True}}
KEY = "Bearer very-secret"


def test_off_unless_asked_for() -> None:
    """OpenTelemetry's variables alone start nothing, and broken ones harm nobody who did not ask."""
    config = load(None, {}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_SAMPLER": "always_off"})
    assert not config.tracing.enabled
    assert config.tracing.url == "http://localhost:4318/v1/traces"


def test_standard_variables_fill_in_what_is_not_said() -> None:
    """Endpoint, headers, timeout (milliseconds), service and resource; the traces' own variable before the general one."""
    tracing = load(
        None,
        ON,
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20b, tenant=t1",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=from-resource,deployment.environment.name=prod",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.25",
        },
    ).tracing
    assert tracing.url == "http://collector:4318/v1/traces"
    assert tracing.headers == {"x-key": "a b", "tenant": "t1"}
    assert (tracing.timeout_s, tracing.compression, tracing.sample_ratio) == (2.5, "gzip", 0.25)
    assert (tracing.service_name, tracing.resource) == ("from-resource", {"deployment.environment.name": "prod"})
    own = load(None, ON, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/custom", "OTEL_SERVICE_NAME": "s"}).tracing
    assert (own.url, own.service_name) == ("http://c/custom", "s")


def test_penstock_s_own_settings_win() -> None:
    """What the file, PENSTOCK_* or a flag says stands; headers are joined by name."""
    environ = {
        "PENSTOCK_TRACING__ENABLED": "true",
        "PENSTOCK_TRACING__ENDPOINT": "https://ours:1",
        "PENSTOCK_TRACING__HEADERS": '{"a": "1"}',
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://theirs:4318",
        "OTEL_EXPORTER_OTLP_HEADERS": "a=2,b=3",
    }
    tracing = load(None, {}, environ).tracing
    assert tracing.url == "https://ours:1/v1/traces"
    assert tracing.headers == {"a": "1", "b": "3"}


def test_headers_are_secrets(tmp_path: Path) -> None:
    """By reference or as they are; printed and shown nowhere."""
    held = tmp_path / "key"
    held.write_text(KEY + "\n")
    headers = {"authorization": "env:PENSTOCK_OTLP_KEY", "x-other": f"file:{held}"}
    path = tmp_path / "penstock.yaml"
    path.write_text(f"replicas: [{{name: a, url: 'http://h:1'}}]\ntracing: {{headers: {headers}}}")
    config = load(path, {}, {"PENSTOCK_OTLP_KEY": KEY})
    assert config.tracing.headers == {"authorization": KEY, "x-other": KEY}
    assert KEY not in redacted_yaml(config)
    assert KEY not in repr(config)
    assert "authorization: '***'" in redacted_yaml(config)


@pytest.mark.parametrize(
    ("said", "environ", "problem"),
    [
        ({"endpoint": "collector:4318"}, {}, "tracing.endpoint: 'collector:4318' is no http address; give the collector's"),
        ({"endpoint": "http://u:p@c:4318"}, {}, "tracing.endpoint: carries a user or password; put the credential in `headers`"),
        ({"protocol": "grpc"}, {}, "tracing.protocol: 'grpc' is not one of http/protobuf"),
        ({}, {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "is not one of http/protobuf (from OTEL_EXPORTER_OTLP_PROTOCOL)"),
        ({"sample_ratio": 2}, {}, "tracing.sample_ratio: 2 is too large; give 1 or less"),
        ({"headers": {"a b": "x"}}, {}, "tracing.headers: 'a b' is no header's name"),
        ({"headers": {"authorization": "secret\n"}}, {}, "tracing.headers.authorization: empty, or has line breaks"),
        ({"headers": {"authorization": "env:NOBODY"}}, {}, "tracing.headers.authorization: the environment variable NOBODY is not set"),
        ({"batch_requests": 9, "queue_requests": 8}, {}, "tracing.batch_requests: 9 is more than queue_requests holds"),
        ({}, {"OTEL_EXPORTER_OTLP_HEADERS": "nonsense"}, "OTEL_EXPORTER_OTLP_HEADERS: not a list of name=value"),
        ({}, {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "tracing.timeout_s: 'soon' is not a number (from OTEL_EXPORTER_OTLP_TIMEOUT)"),
        ({}, {"OTEL_TRACES_SAMPLER": "always_off"}, "OTEL_TRACES_SAMPLER: 'always_off' is not known here"),
        ({}, {"PENSTOCK_TRACING__HEADERS": "x"}, "PENSTOCK_TRACING__HEADERS: not a JSON object"),
    ],
)  # fmt: skip
def test_mistakes(said: dict[str, object], environ: dict[str, str], problem: str) -> None:
    """Each is one line that names its place and what to change, and shows no header's value."""
    with pytest.raises(ConfigError) as caught:
        load(None, {"tracing": {"enabled": True, **said}}, environ)
    assert [line for line in caught.value.problems if problem in line], caught.value.problems
    assert "secret" not in str(caught.value)
