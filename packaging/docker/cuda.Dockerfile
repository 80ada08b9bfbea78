# agnostic_nn on NVIDIA GPUs, with JAX, PyTorch and CuPy. The CUDA libraries come with the
# wheels; the driver is that of the host. Build it in the root of the repository:
#     docker build -f packaging/docker/cuda.Dockerfile -t agnostic-nn:0.1.0-cuda13 .
#     docker run --rm --gpus all agnostic-nn:0.1.0-cuda13 backends
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS build

# the tag of the base image fixes the release of Ubuntu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY agnostic_nn agnostic_nn
COPY backends backends
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir "torch==2.13.0" \
        ".[jax,cupy-cuda13x,llvm,compare,report]" "jax[cuda13]" "cupy-cuda13x[ctk]"

FROM nvidia/cuda:13.0.1-base-ubuntu24.04

LABEL org.opencontainers.image.title="agnostic-nn" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="BSD-3-Clause"
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XLA_PYTHON_CLIENT_PREALLOCATE=false
# the tag of the base image fixes the release of Ubuntu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 user
COPY --from=build /opt/venv /opt/venv
USER 1001
WORKDIR /home/user
RUN ["agnostic-nn", "--version"]
ENTRYPOINT ["agnostic-nn"]
CMD ["--help"]
