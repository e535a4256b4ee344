"""Taking a part of the product away for a while, to see who notices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

Patch = Callable[[], AbstractContextManager[None]]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value`, and afterwards what it was."""
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def value(owner: Any, name: str, new: Any) -> Patch:
    """Replace an attribute of a class or a module."""
    return lambda: replaced(owner, name, new)


def method(owner: Any, name: str, make: Callable[[Any], Any]) -> Patch:
    """`make` gets the method as it is, and returns it as it shall be."""
    return lambda: replaced(owner, name, make(owner.__dict__[name]))


def together(*patches: Patch) -> Patch:
    """All of them at once."""

    @contextmanager
    def all_of_them() -> Iterator[None]:
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch())
            yield

    return all_of_them
