"""Lists of the Cloud Functions API: filters, orders and page tokens. Pure.

Source: google.aip.dev/158 (pages) and /160 (filters, of which this is the part without brackets and
functions), and google.cloud.functions_v2's requests.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from fedkeeper.fabric.google_rpc import invalid

Item = Mapping[str, Any]
Filter = Callable[[Item], bool]

PAGE_MAX: Final = 1000
_FILTER_MAX_CHARS: Final = 2000
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<word>AND|OR|NOT)(?=\s)|(?P<minus>-)(?=[A-Za-z])"""
    r"""|(?P<path>[A-Za-z_][A-Za-z0-9_.-]*)\s*(?P<op>!=|=|:)\s*(?P<value>"(?:[^"\\]|\\.)*"|[^\s"()]+))"""
)


def camel(text: str) -> str:
    """ "available_memory" -> "availableMemory"; what is in camel case already stays."""
    first, *rest = text.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def page(items: Iterable[Item], query: Mapping[str, str], *, scope: str) -> tuple[list[Item], str]:
    """The page that `query` (pageSize, pageToken, filter, orderBy) asks for, and the next page's token.

    A token holds the last name that was shown, so that what comes or goes in between neither repeats nor
    hides another. It serves for the same `scope`, filter and order only. Refused INVALID_ARGUMENT.
    """
    size = _size(query.get("pageSize", ""))
    wanted, order = query.get("filter", ""), query.get("orderBy", "")
    fits = parse_filter(wanted)
    # the names order what is equal, so that every page continues where the one before it stopped
    found = sorted((item for item in items if fits(item)), key=_name)
    for path, descending in reversed(_order(order)):
        found.sort(key=lambda item, path=path: _sortable(_value(item, path)), reverse=descending)  # type: ignore[misc]
    mark = hashlib.sha256("\0".join((scope, wanted, order)).encode()).hexdigest()[:16]
    found = found[_position(found, query.get("pageToken", ""), mark, ordered=bool(order)) :]
    more = len(found) > size
    return found[:size], _token(mark, _name(found[size - 1])) if more else ""


def parse_filter(text: str) -> Filter:
    """`state="ACTIVE" AND labels.team:*` as a function. Refused INVALID_ARGUMENT for what it does not know.

    Terms are `path=value`, `path!=value`, `path:value` (contains; `*`: is there), negated by NOT or -, joined
    by AND (or a blank) and OR, which binds tighter.
    """
    if len(text) > _FILTER_MAX_CHARS:
        raise invalid(f"filter: longer than {_FILTER_MAX_CHARS} characters.")
    groups: list[list[Filter]] = []
    either = negated = False
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or (match["word"] == "OR" and (either or not groups)):
            raise invalid(f"Invalid filter near {text[at : at + 40]!r}.")
        at = match.end()
        if match["word"] == "OR":
            either = True
        elif match["word"] == "NOT" or match["minus"]:
            negated = not negated
        elif not match["word"]:
            term = _term(match["path"], match["op"], match["value"], negated=negated)
            if either:
                groups[-1].append(term)
            else:
                groups.append([term])
            either = negated = False
    if either or negated:
        raise invalid("Invalid filter: it ends where a term should be.")
    return lambda item: all(any(term(item) for term in group) for group in groups)


def _term(path: str, op: str, value: str, *, negated: bool) -> Filter:
    if value.startswith('"'):
        value = re.sub(r"\\(.)", r"\1", value[1:-1])
        anything = False
    else:
        anything = value == "*"
    steps = path.split(".")
    steps = [camel(steps[0]), *(steps[1:] if steps[0] == "labels" else map(camel, steps[1:]))]

    def fits(item: Item) -> bool:
        found = _value(item, steps)
        if anything:
            holds = found not in (None, "", {}, [])
        elif op == ":":
            holds = value in found if isinstance(found, (dict, list)) else value in _text(found)
        else:
            holds = _text(found) == value
        return holds != (negated ^ (op == "!="))

    return fits


def _value(item: Item, steps: Sequence[str]) -> Any:
    value: Any = item
    for step in steps:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _sortable(value: Any) -> tuple[bool, float, str]:
    if isinstance(value, (int, float)):
        return True, value, ""
    return False, 0, _text(value)


def _order(text: str) -> list[tuple[list[str], bool]]:
    order = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_.-]*)(?:\s+(asc|desc))?", part)
        if match is None:
            raise invalid(f"Invalid order_by: {part[:80]!r}.")
        order.append(([camel(step) for step in match[1].split(".")], match[2] == "desc"))
    return order


def _size(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{0,10}", text):
        raise invalid(f"Invalid value at 'page_size' (TYPE_INT32), {text[:40]!r}")
    size = int(text or 0)
    if size < 0:
        raise invalid("page_size must not be negative.")
    return min(size or PAGE_MAX, PAGE_MAX)


def _name(item: Item) -> str:
    return str(item["name"])


def _token(mark: str, name: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark, name]).encode()).decode()


def _position(found: Sequence[Item], token: str, mark: str, *, ordered: bool) -> int:
    """Where the page begins: after the name in the token."""
    if not token:
        return 0
    try:
        told, name = json.loads(base64.urlsafe_b64decode(token))
    except (binascii.Error, ValueError, TypeError):
        raise invalid("Invalid page token.") from None
    if told != mark or not isinstance(name, str):
        raise invalid("The page token is of another list: keep parent, filter and order_by.")
    if not ordered:
        return sum(_name(item) <= name for item in found)
    names = [_name(item) for item in found]
    if name not in names:
        raise invalid("The page token has expired: begin again without one.")
    return names.index(name) + 1
