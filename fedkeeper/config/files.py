"""Files that come with FedKeeper: beside the package in a clone, inside it once it is installed."""

from __future__ import annotations

from pathlib import Path

from fedkeeper.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent.parent
ROOTS = (_PACKAGE.parent, _PACKAGE / "shipped")  # a clone, an installed package
SHIPPED = ("functions", "data", "config-sample.yaml")


def shipped(name: str) -> Path:
    """The shipped file or folder `name`: `functions[/…]`, `data[/…]` or `config-sample.yaml`.

    Raises:
        ConfigError: it did not come with this installation.
    """
    if Path(name).parts and Path(name).parts[0] in SHIPPED:
        # Installed, the package's parent is site-packages, where a folder `data` may be anybody's.
        for root in ROOTS if (ROOTS[0] / "pyproject.toml").exists() else ROOTS[1:]:
            if (root / name).exists():
                return root / name
    raise ConfigError(
        f"{name} did not come with this installation", hint="install FedKeeper again, or clone it"
    )


def find(name: str, *, folder: Path | None) -> Path:
    """The file `name` beside the config, else the shipped one. ValueError if there is neither."""
    beside = (folder or Path.cwd()) / Path(name).expanduser()
    if beside.exists():
        return beside.resolve()
    try:
        return shipped(name)
    except ConfigError:
        raise ValueError(f"no such file: {beside}") from None
