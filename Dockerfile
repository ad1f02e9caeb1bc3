# An image that serves a model on the CPU, built from the wheel of this clone:
#   docker build --tag prime-xmc .
#   docker run --rm --publish 127.0.0.1:8000:8000 --volume "$PWD/<run>/model:/model:ro" --env PRIME_XMC_TOKEN prime-xmc
# What follows the name of the image replaces the command below: prime-xmc model=/model host=0.0.0.0 scorer=theta

FROM python:3.11-slim AS build
WORKDIR /build
COPY constraints.txt ./
# torch first, from the index of its CPU builds: PyPI's for Linux brings gigabytes of CUDA.
RUN python -m venv /opt/prime-xmc \
    && /opt/prime-xmc/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu \
        "$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir "$(grep '^hatchling==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY src src
RUN python -m hatchling build --target wheel --directory /wheels \
    && /opt/prime-xmc/bin/pip install --no-cache-dir --constraint constraints.txt "$(echo /wheels/*.whl)[serve]"

FROM python:3.11-slim
RUN useradd --system --create-home --uid 10001 prime
COPY --from=build /opt/prime-xmc /opt/prime-xmc
ENV PATH=/opt/prime-xmc/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
USER 10001
WORKDIR /home/prime
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=90s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["prime-xmc-serve"]
# All addresses of the container, for which the server asks for a token: --env PRIME_XMC_TOKEN, or token=none.
CMD ["model=/model", "host=0.0.0.0"]
