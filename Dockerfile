# Two stages: the first installs pinned, hashed dependencies into a virtual environment and compiles scheduler and relay (docs/compiled.md), the second carries only that.
# No root at run time, and any UID will do: nothing is written below /opt/penstock, so a read-only root file system is fine.
FROM python:3.11-slim AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/penstock
WORKDIR /src
# Dependencies first, those of the extras `discovery`, `otel` and `oidc` too: this layer is rebuilt only when the lock changes.
COPY requirements-container.lock ./
RUN /opt/penstock/bin/pip install --require-hashes -r requirements-container.lock
# The compiler's own packages stay out of what is carried.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY requirements-compiler.lock ./
RUN /opt/penstock/bin/pip install --require-hashes --target /opt/compiler -r requirements-compiler.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY config config
COPY metrics metrics
COPY batching batching
COPY backends backends
COPY router router
RUN PYTHONPATH=/opt/compiler PENSTOCK_COMPILED=1 /opt/penstock/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11-slim
COPY --from=builder /opt/penstock /opt/penstock
# In a container loopback is nobody's. Variables win over a mounted file; change the port here (-e), and HEALTHCHECK follows.
ENV PATH=/opt/penstock/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PENSTOCK_SERVER__HOST=0.0.0.0 \
    PENSTOCK_SERVER__PORT=8080
WORKDIR /tmp
# A number, so that Kubernetes' runAsNonRoot can check it; group 0, as platforms with random UIDs run it.
USER 10001:0
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['PENSTOCK_SERVER__PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["penstock"]
CMD ["serve"]
