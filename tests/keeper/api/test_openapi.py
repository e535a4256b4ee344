"""The document. Every answer of the tests is checked against it, see `tests.keeper.lab.check`."""

from __future__ import annotations

import json

from openapi_spec_validator import OpenAPIV31SpecValidator

from fedkeeper.core.model import Run, RunSpec
from fedkeeper.keeper.api import schemas
from fedkeeper.keeper.api.guard import Access


async def document(lab):
    """As it is served."""
    return (await lab.ask("GET", "/v1/openapi.json")).json


async def test_it_is_valid(lab):
    """OpenAPI 3.1."""
    OpenAPIV31SpecValidator(await document(lab)).validate()


async def test_it_has_every_route_and_no_other(lab):
    """Asked over HTTP: a route answers something else than 405, what is no route answers 404 or 405."""
    paths = (await document(lab))["paths"]
    assert {(path, method) for path, item in paths.items() for method in item} == {
        (route.path, route.method.lower()) for route in lab["k1"].api.routes
    }
    methods = ("GET", "PUT", "POST", "DELETE", "PATCH", "HEAD", "OPTIONS")
    for path, item in paths.items():
        target = path.replace("{run}", "none").replace("{name}", "none")
        for method in methods:
            async with lab.session.request(method, lab["k1"].url + target) as response:
                known = response.status != 405
            assert known == (method.lower() in item), f"{method} {path}: {response.status}"
    for target in ("/", "/v1", "/v1/", "/v2/kv", "/v1/runs/a/b", "/v1/status/", "/v1/../etc/passwd"):
        assert (await lab.ask("GET", target)).status == 404


async def test_it_says_who_may_what(lab):
    """As the routes do."""
    paths = (await document(lab))["paths"]
    for route in lab["k1"].api.routes:
        named = {name for way in paths[route.path][route.method.lower()]["security"] for name in way}
        expected = {
            Access.NOBODY: set(),
            Access.READER: {"reader", "operator"},
            Access.OPERATOR: {"operator"},
        }[route.needs]
        assert named == expected, route.path


async def test_every_field_of_a_run_is_in_it(lab):
    """And of what can be sent."""
    known = (await document(lab))["components"]["schemas"]
    for kind in (Run, RunSpec):
        assert set(known[kind.__name__]["properties"]) == set(kind.__dataclass_fields__)
    for kind in (schemas.Put, schemas.Submission, schemas.Status, schemas.Failure):
        assert set(known[kind.__name__]["properties"]) == set(kind.__struct_fields__)
    assert known["Submission"]["properties"]["spec"] == {"$ref": "#/components/schemas/RunSpec"}
    assert known["Put"]["additionalProperties"] is False


async def test_it_holds_nothing_of_this_keeper(lab):
    """It is told to anybody."""
    text = json.dumps(await document(lab))
    assert "k1" not in text
    assert lab["k1"].url not in text
