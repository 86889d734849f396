# The app and the command line, on the processor. docs/batch.md says how to use it.
#
#   docker build -t psvit .
#   docker run --init -p 127.0.0.1:8501:8501 -v psvit:/data psvit       # prints an address with a token
#   docker run --init -v psvit:/data -v "$PWD:/work" psvit run run.yaml

FROM python:3.11-slim-bookworm AS build
WORKDIR /source
# What the wheel is made of: tests/project/test_container.py compares it with the packaging's tests.
COPY pyproject.toml setup.py MANIFEST.in requirements.txt ./
COPY requirements-onnx.txt requirements-nir.txt requirements-cluster.txt ./
COPY README.md CHANGELOG.md LICENSE app.py ./
COPY docs/definitions.md docs/
COPY .streamlit .streamlit
COPY pages pages
COPY ui ui
COPY psvit_core psvit_core
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
# cc compiles the kernels on first use; without it, torch computes the same values, slower.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# PyTorch's own index has builds without CUDA, which are gigabytes smaller.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" "$(ls /wheels/*.whl)[onnx]" \
    && rm -r /wheels

RUN useradd --create-home --uid 1000 psvit \
    && mkdir -m 700 /data \
    && mkdir /models /work \
    && chown psvit:psvit /data /models /work
USER psvit
WORKDIR /work
# No token is in the image: "auto" makes one at each start and prints it. PSVIT_TOKEN=... of
# `docker run` is one of your own.
ENV PSVIT_TOKEN=auto \
    PSVIT_CACHE=/data/store \
    PSVIT_DATA=/data/images \
    PSVIT_MODELS=/models
VOLUME /data
EXPOSE 8501
# Only this path answers without the token.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
ENTRYPOINT ["psvit"]
CMD ["app", "--server.address", "0.0.0.0", "--server.headless", "true"]
