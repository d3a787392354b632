# creditd for the CPU: the `service` extra, without torch. With models, whose torch brings CUDA and several gigabytes:
#   docker build --build-arg EXTRAS=service,models .
# and mount the directory that `models_root` names.
#
# The tag names the Python and Debian release, and its content moves with their security fixes. For a build that never
# moves, pin the digest, which `docker buildx imagetools inspect python:3.11-slim-bookworm` prints:
#   docker build --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:DIGEST .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY client ./client
COPY service ./service
COPY trainer_adapters ./trainer_adapters

RUN pip wheel --no-deps --wheel-dir /wheels .

# The wheel is named by its path, never by its name: no index can put another `creditd` in its place.
# Wheels only, so that no compiler is needed; the pip of this stage fills the venv, so that the venv holds none.
ARG EXTRAS=service
RUN python -m venv --without-pip /opt/creditd \
    && set -- /wheels/creditd-*.whl \
    && pip --python /opt/creditd/bin/python install --only-binary=:all: -c constraints.txt "${1}[${EXTRAS}]"


# The same image as above: the venv points at its interpreter.
FROM ${PYTHON_IMAGE} AS runtime

ENV PATH=/opt/creditd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

COPY --from=builder /opt/creditd /opt/creditd

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="creditd" \
      org.opencontainers.image.description="Credit assignment for RL post-training, as a service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# A number, because Kubernetes can prove runAsNonRoot only of a number. Root owns the venv: the service cannot change it.
USER 10001:10001

EXPOSE 8400

# http.client and not urllib: a proxy in the environment must not stand between the probe and the service.
# Kubernetes ignores this line and has its own probes (deploy/k8s).
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-I", "-c", "import http.client, sys; c = http.client.HTTPConnection('127.0.0.1', 8400, timeout=4); c.request('GET', sys.argv[1]); sys.exit(c.getresponse().status != 200)", "/livez"]

ENTRYPOINT ["creditd"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8400"]
