# Targets: `wheel` builds the wheel; `train` is Airflow with the training stack; `serve` is the HTTP
# server alone, without torch and Airflow. Both install the same wheel. Compiled code comes with the
# image, below the Python prefix: its user reads it, and copies it to where it can write. On another
# kind of processor than that of the build, what is used is compiled again, into that copy.
#
#   docker build --target serve -t sluice-serve .
#   docker build --target train -t sluice-train .
#   docker build --target train --build-arg REQUIREMENTS=cuda.txt -t sluice-train-cuda .
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV DO_NOT_TRACK=1 \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_DISABLE_TELEMETRY=true \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# libgomp is LightGBM's; Debian keeps one version of it a release, so that a pin would only break.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 sluice \
    && mkdir -p /sluice/var \
    && chown sluice:sluice /sluice/var
WORKDIR /sluice
ENV SLUICE_HOME=/sluice/var

FROM base AS wheel
COPY requirements/cpu.txt /tmp/cpu.txt
RUN grep -E '^(build|packaging|pyproject-hooks|setuptools)==' /tmp/cpu.txt > /tmp/build.txt \
    && pip install --no-deps -r /tmp/build.txt
COPY LICENSE README.md pyproject.toml setup.py ./
COPY stages stages
COPY serving serving
COPY cli cli
COPY sluice sluice
COPY configs configs
COPY dags dags
RUN python -m build --wheel --no-isolation --outdir /wheels

FROM base AS train
# train.txt (CPU) or cuda.txt
ARG REQUIREMENTS=train.txt
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements /tmp/requirements
RUN if [ "${REQUIREMENTS}" = train.txt ]; then \
        pip install --no-deps --extra-index-url "${TORCH_CPU_INDEX}" \
            "$(grep '^torch==' /tmp/requirements/train.txt)"; \
    fi \
    && pip install --no-deps -r "/tmp/requirements/${REQUIREMENTS}"
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-deps /tmp/wheels/*.whl \
    && python -m stages.compile_ahead
COPY configs configs
COPY dags dags
ENV AIRFLOW_HOME=/sluice/var/airflow \
    AIRFLOW__API__PORT=8080 \
    AIRFLOW__CORE__DAGS_FOLDER=/sluice/dags \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False \
    SLUICE_CONFIGS=/sluice/configs
USER 10001
EXPOSE 8080
HEALTHCHECK --start-period=120s --interval=30s --timeout=10s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['AIRFLOW__API__PORT'] + '/api/v2/monitor/health', timeout=5)"]
# One container that runs all of Airflow; compose.yaml starts its parts one by one instead.
CMD ["airflow", "standalone"]

FROM base AS serve
COPY requirements/serve.txt /tmp/serve.txt
RUN pip install --no-deps -r /tmp/serve.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-deps /tmp/wheels/*.whl \
    && python -m stages.compile_ahead
ENV SLUICE_HOST=0.0.0.0 \
    SLUICE_PORT=8080
USER 10001
EXPOSE 8080
HEALTHCHECK --start-period=30s --interval=10s --timeout=5s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['SLUICE_PORT'] + '/healthz', timeout=3)"]
CMD ["sluice", "serve"]
