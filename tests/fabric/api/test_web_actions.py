"""Web actions: public endpoints of actions that say so."""

import pytest

WEB = [{"key": "web-export", "value": True}]
ECHO = "def main(args):\n    return {'seen': args}\n"
BASE = "/api/v1/web/guest/default"


async def test_only_exported_actions_are_public(fabric):
    """404 otherwise, as if it were not there."""
    await fabric.put("private", ECHO)
    await fabric.put("public", ECHO, annotations=WEB)
    assert (await fabric.call("GET", f"{BASE}/private.json", auth=None)).status == 404
    assert (await fabric.call("GET", f"{BASE}/none.json", auth=None)).status == 404
    assert (await fabric.call("GET", f"{BASE}/public.json", auth=None)).status == 200


async def test_an_action_sees_method_headers_path_and_arguments(fabric):
    """Query and JSON body are arguments; the rest of the path is __ow_path; __ow_ names are reserved."""
    await fabric.put("a", ECHO, annotations=WEB)
    answer = await fabric.call("POST", f"{BASE}/a.json/x/y?q=1", {"b": 2}, auth=None, X_Mine="yes")
    seen = answer.body["seen"]
    assert (seen["q"], seen["b"], seen["__ow_method"], seen["__ow_path"]) == ("1", 2, "post", "/x/y")
    assert seen["__ow_headers"]["x-mine"] == "yes"
    assert (await fabric.call("GET", f"{BASE}/a.json?__ow_method=x", auth=None)).status == 400
    text = await fabric.call("PUT", f"{BASE}/a.json", data=b"hi", auth=None, Content_Type="text/plain")
    assert text.body["seen"]["__ow_body"] == "hi"


async def test_http_is_made_of_status_headers_and_body(fabric):
    """.http is the default; binary bodies are base64; header injection is refused."""
    code = "def main(args):\n    return eval(args['r'])\n"
    await fabric.put("a", code, annotations=WEB)

    async def get(result, extension=""):
        return await fabric.call("POST", f"{BASE}/a{extension}", {"r": result}, auth=None)

    made = await get("{'statusCode': 201, 'headers': {'X-A': 'b', 'Set-Cookie': 'c=d'}, 'body': '<p>'}")
    assert (made.status, made.body, made.headers["X-A"]) == (201, "<p>", "b")
    assert made.headers["Content-Type"].startswith("text/html")
    assert (await get("{'body': {'j': 1}}")).body == {"j": 1}
    png = await get("{'headers': {'Content-Type': 'image/png'}, 'body': 'aGk='}")
    assert (png.body, png.headers["Content-Type"]) == ("hi", "image/png")
    assert (await get("{}")).status == 204
    assert (await get("{'headers': {'X': 'a\\r\\nY: b'}, 'body': 'x'}")).status == 400
    assert (await get("{'statusCode': 'ok'}")).status == 400
    assert (await get("{'statusCode': 42, 'body': 'x'}")).status == 400
    assert (await get("{'text': 'plain'}", ".text")).body == "plain"
    assert (await get("{'text': 'plain'}", ".html")).body["error"] == "Response is not valid 'text/html'."
    assert (await get("{'error': {'statusCode': 418, 'body': 'no'}}")).status == 418
    assert (await get("'text'", ".json")).body["error"] == "There was an error processing your request."


@pytest.mark.parametrize(("required", "header"), [("s3cret", "s3cret"), (7, "7")])
async def test_an_action_may_ask_for_a_secret_header(fabric, required, header):
    """require-whisk-auth: a string or number is X-Require-Whisk-Auth; true is Basic auth."""
    await fabric.put("a", ECHO, annotations=[*WEB, {"key": "require-whisk-auth", "value": required}])
    await fabric.put("b", ECHO, annotations=[*WEB, {"key": "require-whisk-auth", "value": True}])
    assert (await fabric.call("GET", f"{BASE}/a.json", auth=None)).status == 401
    right = await fabric.call("GET", f"{BASE}/a.json", auth=None, X_Require_Whisk_Auth=header)
    assert right.status == 200
    assert (await fabric.call("GET", f"{BASE}/b.json", auth=None)).status == 401
    assert (await fabric.call("GET", f"{BASE}/b.json")).status == 200
