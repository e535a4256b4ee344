"""A user of the official Cloud Functions client."""

import urllib.request

from google.api_core.retry import Retry
from google.auth.transport.requests import AuthorizedSession
from google.cloud import functions_v2
from google.oauth2 import service_account

PARENT = "projects/demo/locations/here"
ECHO = """
import json
def hello(request):
    return {"got": json.loads(request.body or b"{}"), "path": request.path, "method": request.method}
"""
SOON = Retry(initial=0.02, maximum=0.05, timeout=20)


class Caller:
    """A user of the official client; blocking, so its methods are run in threads."""

    def __init__(self, fabric, project="demo", key=None):
        self.info = {**fabric.credentials.accounts[project], **({"private_key": key} if key else {})}
        self.client = functions_v2.FunctionServiceClient(
            credentials=service_account.Credentials.from_service_account_info(self.info),
            transport="rest",
            client_options={"api_endpoint": fabric.url},
        )

    def upload(self, archive, location="here"):
        parent = f"projects/demo/locations/{location}"
        told = self.client.generate_upload_url({"parent": parent, "environment": 2}, timeout=10)
        sent = urllib.request.Request(
            told.upload_url, archive, {"content-type": "application/zip"}, method="PUT"
        )
        with urllib.request.urlopen(sent, timeout=10) as answer:
            assert answer.status == 200
        return told.storage_source

    def function(self, name, source, location="here", **service):
        return functions_v2.Function(
            name=f"projects/demo/locations/{location}/functions/{name}",
            build_config={
                "runtime": "python311",
                "entry_point": "hello",
                "source": {"storage_source": source},
            },
            service_config={"available_memory": "512Mi", "timeout_seconds": 30, **service},
            labels={"made-by": "test"},
        )

    def create(self, name, archive, **service):
        return self.create_from(name, self.upload(archive), **service)

    def create_from(self, name, source, location="here", **service):
        return self.begin(name, source, location, **service).result(timeout=20, retry=SOON)

    def begin(self, name, source, location="here", **service):
        function = self.function(name, source, location, **service)
        request = {"parent": f"projects/demo/locations/{location}", "function": function, "function_id": name}
        return self.client.create_function(request, timeout=10)

    def invoke(self, url, body, audience=None, **headers):
        identity = service_account.IDTokenCredentials.from_service_account_info(
            self.info, target_audience=audience or url
        )
        with AuthorizedSession(identity) as session:
            return session.post(url, json=body, headers=headers, timeout=20)

    def close(self):
        self.client.transport.close()
