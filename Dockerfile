FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY aiolog aiolog
RUN python -m venv /opt/aiolog && /opt/aiolog/bin/pip install --no-cache-dir '.[server]'

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin aiolog \
    && install --directory --owner aiolog --group aiolog --mode 0750 /var/log/aiolog
COPY --from=build /opt/aiolog /opt/aiolog
COPY config/docker.toml /etc/aiolog/aiolog.toml
ENV PATH=/opt/aiolog/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER aiolog
WORKDIR /var/log/aiolog
# All that it writes; the rest may be read-only.
VOLUME /var/log/aiolog
EXPOSE 9020 9022
# Drains within [server] drain_timeout_seconds, which is below the 10 s after which Docker kills.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s CMD ["aiolog", "healthcheck", "--config", "/etc/aiolog/aiolog.toml"]
ENTRYPOINT ["aiolog"]
CMD ["serve", "--config", "/etc/aiolog/aiolog.toml"]
