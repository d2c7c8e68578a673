# One image for the SuperLink, the SuperNodes and the runner. CPU by default; for CUDA
#   TORCH_INDEX= docker compose build                    (PyPI's PyTorch)
# or another index, such as https://download.pytorch.org/whl/cu130.

# Dependencies, from pyproject.toml alone, so that pip runs again only when that file changes.
# Ray is left out: it simulates nodes, and here they are containers.
FROM python:3.11-slim AS requirements
COPY pyproject.toml .
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      | sed 's/\[simulation\]//' > /all.txt \
    && grep '^torch' /all.txt > /torch.txt

FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=requirements /all.txt /torch.txt /tmp/
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r /tmp/torch.txt \
    && pip install --no-cache-dir -r /tmp/all.txt \
    && rm -r "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch/include"

WORKDIR /app
COPY . .
RUN pip install --no-cache-dir --no-deps . && useradd --create-home --uid 1000 app

USER app
# Flower's usage statistics and update check are off: the containers contact nobody outside.
ENV FLWR_HOME=/home/app/.flwr FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 PYTHONUNBUFFERED=1
CMD ["superfednas", "--help"]
