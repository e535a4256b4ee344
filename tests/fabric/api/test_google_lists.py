"""Lists of the Cloud Functions API: pages, filters, orders, runtimes, locations; by the official client."""

from __future__ import annotations

import asyncio

import pytest
from google.api_core import exceptions as api_errors
from google.cloud import functions_v2

from fedkeeper.fabric.google_lists import page, parse_filter
from fedkeeper.fabric.google_rpc import Refused
from tests.fabric.api.conftest import zipped
from tests.fabric.api.google import ECHO, PARENT

FUNCTION = {
    "name": "projects/p/locations/l/functions/f",
    "state": "ACTIVE",
    "environment": "GEN_2",
    "labels": {"team": "blue", "empty": ""},
    "serviceConfig": {"availableMemory": "512Mi", "timeoutSeconds": 60},
    "done": True,
}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("", True),
        ("state=ACTIVE", True),
        ('state="ACTIVE"', True),
        ("state=FAILED", False),
        ("state!=FAILED", True),
        ("NOT state=FAILED", True),
        ("-state=ACTIVE", False),
        ('environment="GEN_2" AND state=ACTIVE', True),
        ("environment=GEN_2 state=FAILED", False),
        ("state=FAILED OR state=ACTIVE", True),
        ("state=FAILED OR state=ACTIVE AND environment=GEN_1", False),
        ("labels.team=blue", True),
        ("labels.team:*", True),
        ("labels.empty:*", False),
        ("labels:team", True),
        ("name:functions/f", True),
        ("service_config.available_memory=512Mi", True),
        ("serviceConfig.timeoutSeconds = 60", True),
        ("done=true", True),
        ("done:false", False),
        ('labels.team="bl\\"ue"', False),
        ("state", None),
        ("(state=ACTIVE)", None),
        ("OR state=ACTIVE", None),
        ("state=ACTIVE OR", None),
        ("state=ACTIVE NOT", None),
        ("state=ACTIVE OR OR state=FAILED", None),
        ('state="ACTIVE', None),
        ("x=" + "y" * 2000, None),
    ],
)
def test_a_filter_selects_or_is_refused(text, fits):
    """The part of AIP-160 that is understood; None: INVALID_ARGUMENT, not a wrong answer."""
    if fits is None:
        with pytest.raises(Refused) as refused:
            parse_filter(text)
        assert refused.value.name == "INVALID_ARGUMENT"
    else:
        assert parse_filter(text)(FUNCTION) is fits


def test_pages_repeat_and_miss_nothing_while_the_list_changes():
    """A token goes on after the last name that was shown, whatever came or went."""
    items = [{"name": f"f{number}"} for number in range(6)]
    first, token = page(items, {"pageSize": "3"}, scope="a")
    changed = [{"name": "f00"}, *items[3:], {"name": "f55"}]
    second, end = page(changed, {"pageSize": "9", "pageToken": token}, scope="a")
    assert [item["name"] for item in [*first, *second]] == ["f0", "f1", "f2", "f3", "f4", "f5", "f55"]
    assert end == ""


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("", ["a", "b", "c"]),
        ("name desc", ["c", "b", "a"]),
        ("size", ["b", "a", "c"]),
        ("size desc, name desc", ["c", "a", "b"]),
    ],
)
def test_an_order_holds_over_pages(order, names):
    """Ascending by name, unless the caller says otherwise."""
    items = [{"name": "b", "size": 1}, {"name": "a", "size": 2}, {"name": "c", "size": 2}]
    found, token = [], ""
    while True:
        some, token = page(items, {"pageSize": "1", "orderBy": order, "pageToken": token}, scope="a")
        found += [item["name"] for item in some]
        if not token:
            break
    assert found == names


@pytest.mark.parametrize(
    "query",
    [
        {"pageSize": "-1"},
        {"pageSize": "many"},
        {"pageToken": "%%%"},
        {"pageToken": "bm9uc2Vuc2U="},
        {"orderBy": "name sideways"},
        {"orderBy": "1name"},
    ],
)
def test_a_list_that_cannot_be_asked_for_is_refused(query):
    """INVALID_ARGUMENT for sizes, tokens and orders that are none."""
    with pytest.raises(Refused) as refused:
        page([FUNCTION], query, scope="a")
    assert refused.value.status == 400


def test_a_token_serves_for_its_own_list_only():
    """Another parent, filter or order needs a new one."""
    items = [{"name": "a", "state": "X"}, {"name": "b", "state": "X"}]
    _, token = page(items, {"pageSize": "1"}, scope="a")
    for query, scope in (({}, "b"), ({"filter": "state=X"}, "a"), ({"orderBy": "name"}, "a")):
        with pytest.raises(Refused, match="of another list"):
            page(items, {**query, "pageToken": token}, scope=scope)


async def test_the_client_lists_with_filter_order_and_pages(fabric, caller):
    """Functions of one location or of all, operations, runtimes and locations."""

    def lists():
        source = caller.upload(zipped(main__py=ECHO))
        for number in range(3):
            caller.create_from(f"f{number}", source, timeout_seconds=60 - number)
        caller.create_from("elsewhere", caller.upload(zipped(main__py=ECHO), "there"), location="there")

        def names(**request):
            found = caller.client.list_functions({"parent": PARENT, "page_size": 1, **request}, timeout=10)
            return [one.name.rpartition("/")[2] for one in found]

        assert names() == ["f0", "f1", "f2"]
        assert names(order_by="service_config.timeout_seconds") == ["f2", "f1", "f0"]
        assert names(filter="labels.made-by=test AND NOT name:f1") == ["f0", "f2"]
        assert names(filter="state=FAILED") == []
        assert names(parent="projects/demo/locations/-") == ["f0", "f1", "f2", "elsewhere"]
        with pytest.raises(api_errors.BadRequest, match="Invalid filter"):
            names(filter="((")

        done = list(caller.client.list_operations({"name": PARENT, "filter": "done=true"}).operations)
        assert len(done) == 3
        assert not caller.client.list_operations({"name": PARENT, "filter": "done=false"}).operations
        page = caller.client.list_operations({"name": PARENT, "page_size": 2})
        assert len(page.operations) == 2
        rest = caller.client.list_operations(
            {"name": PARENT, "page_size": 2, "page_token": page.next_page_token}
        )
        assert len(rest.operations) == 1
        assert not rest.next_page_token

        runtimes = caller.client.list_runtimes({"parent": PARENT}, timeout=10).runtimes
        assert {"python311", "python312"} <= {one.name for one in runtimes}
        ga = caller.client.list_runtimes({"parent": PARENT, "filter": "stage=GA"}, timeout=10).runtimes
        assert {one.stage for one in ga} == {functions_v2.ListRuntimesResponse.RuntimeStage.GA}
        places = caller.client.list_locations({"name": "projects/demo"}).locations
        assert {one.location_id for one in places} == {"here", "there"}

    await asyncio.to_thread(lists)
