"""What the images of functions are built from: a folder each, and one stack.yml for faas-cli.

FedKeeper builds none: that takes Docker and a registry. The image has of-watchdog in http mode in front of
the functions framework, which serves `main` of the function's main.py.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from fedkeeper.errors import ConfigError
from fedkeeper.providers.openfaas.resources import SERVER, UPSTREAM

DOCKERFILE: Final = f"""\
# Made by deploy.py --images. See openfaas/of-watchdog for the watchdog's settings.
FROM --platform=${{TARGETPLATFORM:-linux/amd64}} ghcr.io/openfaas/of-watchdog:0.11.6 AS watchdog
FROM --platform=${{TARGETPLATFORM:-linux/amd64}} python:3.12-slim
COPY --from=watchdog /fwatchdog /usr/bin/fwatchdog
RUN useradd --create-home --uid 1000 app
WORKDIR /home/app/function
COPY requirements.txt .
RUN pip install --no-cache-dir "functions-framework>=3.8" -r requirements.txt
COPY --chown=app . .
USER 1000
ENV mode=http upstream_url={UPSTREAM} fprocess="{SERVER}" http_buffer_req_body=true
EXPOSE 8080
HEALTHCHECK --interval=3s CMD [ -e /tmp/.lock ] || exit 1
CMD ["fwatchdog"]
"""
STACK: Final = "stack.yml"


def write_contexts(folder: Path, archives: Mapping[str, bytes], images: Mapping[str, str]) -> Path:
    """Write `folder`/<function>/ for every package, and `folder`/stack.yml, which is what is returned.

    Args:
        folder: made if it is not there; folders of the same functions in it are replaced.
        archives: function -> its package, a zip.
        images: function -> `registry/name:tag`.

    Raises ConfigError: it cannot be written.
    """
    stack: dict[str, object] = {"version": 1.0, "provider": {"name": "openfaas"}, "functions": {}}
    functions: dict[str, object] = {}
    try:
        for function, archive in archives.items():
            context = folder / function
            shutil.rmtree(context, ignore_errors=True)
            context.mkdir(parents=True)
            with zipfile.ZipFile(io.BytesIO(archive)) as package:
                package.extractall(context)  # made by us, from files of the user's own
            (context / "requirements.txt").touch()
            (context / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
            functions[function.replace("_", "-")] = {
                "lang": "dockerfile",
                "handler": f"./{function}",
                "image": images[function],
            }
        stack["functions"] = functions
        path = folder / STACK
        path.write_text(yaml.safe_dump(stack, sort_keys=False), encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{folder}: cannot be written: {exc.strerror or exc}") from exc
    return path
