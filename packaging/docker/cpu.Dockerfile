# agnostic_nn on a CPU, with NumPy, JAX and PyTorch. Build it in the root of the repository:
#     docker build -f packaging/docker/cpu.Dockerfile -t agnostic-nn:0.1.0 .
#     docker run --rm agnostic-nn:0.1.0 backends
FROM python:3.13.9-slim-bookworm AS build

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY agnostic_nn agnostic_nn
COPY backends backends
# wheels of PyTorch for CPUs have their own index
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir \
        --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0" \
    && /opt/venv/bin/pip install --no-cache-dir ".[jax,llvm,compare,report]"

FROM python:3.13.9-slim-bookworm

LABEL org.opencontainers.image.title="agnostic-nn" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="BSD-3-Clause"
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 user
COPY --from=build /opt/venv /opt/venv
USER 1000
WORKDIR /home/user
RUN ["agnostic-nn", "--version"]
ENTRYPOINT ["agnostic-nn"]
CMD ["--help"]
