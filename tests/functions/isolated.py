"""Run by `python -I`: loads packaged functions as the platforms do, in an interpreter without the repository.

One JSON order a line comes in, one answer a line goes out. Each order is worked on by a child that is forked
after TensorFlow's import and before its first operation, as the fabric's workers are: one import serves all.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import os
import sys
from typing import Any


def main() -> None:
    """Import the modules named on the command line, then serve orders until the input ends."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            with os.fdopen(writer, "w") as output:
                json.dump(obey(json.loads(line)), output)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answers:
            answer = answers.read()
        os.waitpid(child, 0)
        print(answer or "null", flush=True)  # noqa: T201


def obey(order: dict[str, Any]) -> dict[str, Any]:
    """Load the function in `folder` and give it the requests; its answers, and what it imported."""
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    sys.path.insert(0, order["folder"])
    folder = order["folder"]
    match order["platform"]:
        case "openwhisk":
            call = openwhisk(folder)
        case "google":
            call = framework(folder, "Function-Execution-Id")
        case _:
            call = framework(folder, "X-Call-Id")  # behind of-watchdog
    answers = [call(request) for request in order["requests"]]
    names = ("fedkeeper", "handler", "tensorflow", "keras")
    found = {name: sys.modules[name].__file__ for name in names if name in sys.modules}
    return {"answers": answers, "modules": found, "path": sys.path}


def openwhisk(folder: str) -> Any:
    """__main__.py is imported as main__, its `main` is called with a dict and returns one."""
    spec = importlib.util.spec_from_file_location("main__", f"{folder}/__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(request: Any) -> Any:
        os.environ["__OW_ACTIVATION_ID"] = request["activation_id"]
        return json.loads(json.dumps(module.main(request["body"]), allow_nan=False))

    return call


def framework(folder: str, header: str) -> Any:
    """main.py under the functions framework, told its activation in `header`; bytes are {"blob": base64}."""
    module = importlib.import_module("functions_framework")
    client = module.create_app("main", f"{folder}/main.py").test_client()

    def call(request: Any) -> Any:
        body, kind = request["body"], "application/json"
        raw = json.dumps(body).encode()
        if "blob" in body:
            raw, kind = base64.b64decode(body["blob"]), "application/octet-stream"
        headers = {header: request["activation_id"], "Content-Type": kind}
        answer = client.post("/", data=raw, headers=headers)
        if answer.mimetype == "application/octet-stream":
            return {"status": answer.status_code, "blob": base64.b64encode(answer.data).decode()}
        return {"status": answer.status_code, "body": json.loads(answer.data)}

    return call


if __name__ == "__main__":
    main()
