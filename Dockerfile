# Two stages: pip and its caches stay in the first; what runs is the environment alone.

FROM python:3.11.14-slim-trixie AS build
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_EXTRA_INDEX_URL=$PIP_EXTRA_INDEX_URL \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/footnote
WORKDIR /src
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY app app
COPY ingestion ingestion
COPY reranker reranker
COPY evaluation evaluation
COPY migrations migrations
RUN /opt/footnote/bin/pip install --constraint requirements.lock '.[cloud,pii]'

FROM python:3.11.14-slim-trixie
LABEL org.opencontainers.image.title="Footnote" \
      org.opencontainers.image.licenses="Apache-2.0"
# The folder exists in the image, so that a new volume over it belongs to the user as well.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin footnote \
    && install --directory --owner=footnote --group=footnote /home/footnote/data
COPY --from=build /opt/footnote /opt/footnote
WORKDIR /opt/footnote/share
COPY config config
ENV PATH=/opt/footnote/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    FOOTNOTE_HOME=/home/footnote/data \
    FOOTNOTE_HOST=0.0.0.0
USER footnote
EXPOSE 8008
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8008/health/ready', timeout=4)"]
CMD ["footnote", "serve"]
