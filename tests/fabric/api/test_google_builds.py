"""Builds and operations of the Cloud Functions API: they take time, tell their stages, and can fail."""

from __future__ import annotations

import asyncio
import io
import time
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import pytest
import requests
from google.api_core import exceptions as api_errors
from google.cloud import functions_v2

from tests.fabric.api.conftest import zipped
from tests.fabric.api.google import ECHO, PARENT, SOON

STAGE, STATE = functions_v2.Stage.Name, functions_v2.Stage.State
DEPLOYING, FAILED = functions_v2.Function.State.DEPLOYING, functions_v2.Function.State.FAILED

FAILURES = [
    ("no main.py", {"other__py": ECHO}, "missing main.py", STAGE.BUILD),
    ("syntax", {"main__py": "def hello(:\n"}, 'File "main.py", line 1: SyntaxError', STAGE.BUILD),
    ("syntax elsewhere", {"main__py": ECHO, "helper__py": "x ="}, 'File "helper.py", line 1', STAGE.BUILD),
    ("null byte", {"main__py": ECHO + "\0"}, "null", STAGE.BUILD),
    ("requirement", {"main__py": ECHO, "requirements.txt": "flask\n???\n"},
     "Invalid requirement: '\\?\\?\\?'.*line 2", STAGE.BUILD),
    ("nowhere", {"main__py": ECHO, "requirements.txt": "no-such-distribution-here>=1"},
     "No matching distribution found for no-such-distribution-here>=1", STAGE.BUILD),
    ("version", {"main__py": ECHO, "requirements.txt": "flask>=999"},
     "Could not find a version that satisfies the requirement flask>=999", STAGE.BUILD),
    ("traversal", {"../x.py": "", "main__py": ECHO}, "leads out of the package", STAGE.BUILD),
    ("import", {"main__py": "import nowhere"}, "Container Healthcheck failed.*No module named",
     STAGE.SERVICE),
    ("entry point", {"main__py": "def other(request): ..."}, "Container Healthcheck failed.*'hello'",
     STAGE.SERVICE),
]  # fmt: skip


def link_in(text):
    """The build log's link, and what is behind it."""
    link = text.partition("see the logs at ")[2].split()[0]
    return Path(urllib.request.url2pathname(urllib.parse.urlsplit(link).path)).read_text()


@pytest.mark.parametrize(("what", "files", "words", "stage"), FAILURES, ids=[row[0] for row in FAILURES])
async def test_a_build_that_fails_shows_failed_and_why(fabric, caller, what, files, words, stage):
    """In the operation's error, its stage and the function's state messages; the log is linked."""

    def fail():
        operation = caller.begin("bad", caller.upload(zipped(**files)))
        with pytest.raises(api_errors.InvalidArgument, match=f"(?s){words}") as failed:
            operation.result(timeout=20, retry=SOON)
        bad = caller.client.get_function({"name": f"{PARENT}/functions/bad"}, timeout=10)
        assert bad.state == FAILED
        assert failed.value.message == bad.state_messages[0].message
        assert bad.state_messages[0].severity == functions_v2.StateMessage.Severity.ERROR
        assert not bad.service_config.revision
        stages = {one.name: one for one in operation.metadata.stages}
        assert stages[stage].state_messages[0].message == failed.value.message
        later = [one.state for one in operation.metadata.stages if one.name > stage]
        assert later == [STATE.NOT_STARTED] * len(later)
        assert operation.metadata.build_name == bad.build_config.build
        if stage == STAGE.BUILD:
            assert failed.value.message.startswith("Build failed with status: FAILURE and message: ")
            assert "ERROR: " in link_in(failed.value.message)
        assert caller.invoke(bad.url, {}).status_code == 404

        good = caller.function("bad", caller.upload(zipped(main__py=ECHO)))
        again = caller.client.update_function({"function": good}, timeout=10).result(timeout=20, retry=SOON)
        assert not again.state_messages
        assert caller.invoke(again.url, {}).status_code == 200

    await asyncio.to_thread(fail)


@pytest.mark.parametrize(
    "line",
    ["", "# flask", "flask", "Flask >= 1  # newer", "flask[async]>=1", "tensorflow-cpu>=2",
     "nowhere; python_version < '3'", "-r other.txt", "--index-url https://x", "git+https://x/y.git"],
)  # fmt: skip
async def test_requirements_that_this_interpreter_meets_build(fabric, caller, line):
    """Markers, extras and stand-ins count; options and addresses are not looked at, and said so."""
    made = await asyncio.to_thread(
        caller.create, "f", zipped(**{"main__py": ECHO, "requirements.txt": line + "\n"})
    )
    assert made.state == functions_v2.Function.State.ACTIVE


async def test_an_operation_takes_time_and_tells_its_stages(fabric, caller):
    """BUILD, then SERVICE; done only at the end; meanwhile every other operation on it is ABORTED."""
    fabric.workers.gate.clear()

    def begin():
        operation = caller.begin("slow", caller.upload(zipped(main__py=ECHO)))
        name = f"{PARENT}/functions/slow"
        assert caller.client.get_function({"name": name}, timeout=10).state == DEPLOYING
        for attempt in (
            lambda: caller.client.delete_function({"name": name}, timeout=10),
            lambda: caller.client.update_function({"function": {"name": name}}, timeout=10),
            lambda: caller.begin("slow", caller.upload(zipped(main__py=ECHO))),
        ):
            with pytest.raises(api_errors.Conflict):
                attempt()
        return operation

    def starts(operation):
        until = time.monotonic() + 20
        while True:
            assert not operation.done()
            stages = {one.name: one.state for one in operation.metadata.stages}
            if stages[STAGE.SERVICE] == STATE.IN_PROGRESS:
                assert stages[STAGE.BUILD] == STATE.COMPLETE
                return
            assert time.monotonic() < until, stages
            time.sleep(0.02)

    operation = await asyncio.to_thread(begin)
    await asyncio.to_thread(starts, operation)
    fabric.workers.gate.set()

    def end():
        made = operation.result(timeout=20, retry=SOON)
        told = operation.metadata
        assert {one.state for one in told.stages} == {STATE.COMPLETE}
        assert (told.verb, told.api_version, told.target) == ("create", "v2", made.name)
        assert told.operation_type == functions_v2.OperationType.CREATE_FUNCTION
        assert told.end_time >= told.create_time
        assert made.build_config.build == told.build_name
        assert made.service_config.revision.startswith("slow-00001-")

    await asyncio.to_thread(end)


async def test_a_source_is_uploaded_and_downloaded_by_urls_that_are_the_permission(fabric, caller):
    """Once each way, not guessable, 100 MB; errors are Cloud Storage's."""

    def travel():
        archive = zipped(main__py=ECHO)
        told = caller.client.generate_upload_url({"parent": PARENT}, timeout=10)
        assert requests.put(told.upload_url, archive, timeout=10).status_code == 200
        again = requests.put(told.upload_url, archive, timeout=10)
        assert (again.status_code, "<Code>SignatureDoesNotMatch</Code>" in again.text) == (403, True)
        assert requests.put(f"{fabric.url}/upload/guess", archive, timeout=10).status_code == 403
        made = caller.create_from("f", told.storage_source)
        source = made.build_config.source.storage_source
        assert (source.bucket, source.object_) == (told.storage_source.bucket, told.storage_source.object_)
        assert source.generation > 0
        assert made.build_config.source_provenance.resolved_storage_source == source
        link = caller.client.generate_download_url({"name": made.name}, timeout=10).download_url
        fetched = requests.get(link, timeout=10)
        assert fetched.headers["Content-Type"] == "application/zip"
        assert zipfile.ZipFile(io.BytesIO(fetched.content)).read("main.py").decode() == ECHO
        assert requests.get(f"{fabric.url}/download/guess", timeout=10).status_code == 403
        stale = {"bucket": source.bucket, "object_": source.object_, "generation": 7}
        with pytest.raises(api_errors.BadRequest, match="no generation 7"):
            caller.begin("g", stale)
        with pytest.raises(api_errors.BadRequest, match="upload it first"):
            caller.begin("g", {"bucket": "b", "object_": "o"})

    await asyncio.to_thread(travel)


async def test_every_deployment_is_a_new_revision_that_knows_its_name(fabric, caller):
    """serviceConfig.revision is the instance's K_REVISION."""
    source = "import os\ndef hello(request): return {}"

    def deploy():
        made = caller.create("f", zipped(main__py=source))
        caller.invoke(made.url, {})
        made.description = "another"
        request = {"function": made, "update_mask": {"paths": ["description"]}}
        updated = caller.client.update_function(request, timeout=10).result(timeout=20, retry=SOON)
        caller.invoke(made.url, {})
        return made.service_config.revision, updated.service_config.revision

    names = await asyncio.to_thread(deploy)
    assert [name[:8] for name in names] == ["f-00001-", "f-00002-"]
    environments = [one.environment for one in fabric.workers.revisions]
    assert tuple(one["K_REVISION"] for one in environments) == names
    assert {(one["K_SERVICE"], one["FUNCTION_TARGET"]) for one in environments} == {("f", "hello")}
