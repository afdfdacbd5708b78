# One image for every service: `sttream producer`, `sttream consumer`, ...
#
#   docker build -t sttream .                            CPU, PostgreSQL, S3, the bundled model
#   docker build -t sttream:cuda --build-arg VARIANT=cuda .   and the CUDA 12 libraries (the driver is the host's)
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
# Which lock goes in: server or cuda (requirements-<VARIANT>.lock).
ARG VARIANT=server
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python3 -m venv /opt/sttream \
    # One path for every Python version; the image's LD_LIBRARY_PATH goes through it.
    && ln -s "$(/opt/sttream/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" /opt/sttream/packages
# Dependencies first: this layer stays as long as the lock does.
COPY requirements-*.lock ./
RUN /opt/sttream/bin/pip install --require-hashes --requirement "requirements-${VARIANT}.lock"
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY producer producer
COPY consumer consumer
COPY cli cli
COPY deploy deploy
RUN /opt/sttream/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/sttream/bin/pip install --no-deps --no-index /wheels/*.whl \
    && /opt/sttream/bin/pip uninstall --yes hatchling editables \
    && /opt/sttream/bin/pip uninstall --yes pip

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="sttream" \
      org.opencontainers.image.description="Speech-to-text over Redis Streams" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The folders exist in the image so that a new volume mounted there belongs to the service user.
RUN groupadd --gid 10001 sttream \
    && useradd --uid 10001 --gid sttream --no-create-home --home-dir /data --shell /usr/sbin/nologin sttream \
    && install --directory --owner=sttream --group=sttream /audio /data /models /results /scratch /uploads
COPY --from=build /opt/sttream /opt/sttream
# HF_HOME: models named (not given as a folder) are kept there. NVIDIA_*: read by the container toolkit,
# without effect on hosts that have no GPU.
ENV PATH=/opt/sttream/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/models \
    LD_LIBRARY_PATH=/opt/sttream/packages/nvidia/cublas/lib:/opt/sttream/packages/nvidia/cudnn/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    STTREAM_RESULTS_DIR=/results \
    STTREAM_UPLOAD_DIR=/uploads
USER 10001:10001
WORKDIR /data
EXPOSE 8010 9100
STOPSIGNAL SIGTERM
ENTRYPOINT ["sttream"]
CMD ["--help"]
