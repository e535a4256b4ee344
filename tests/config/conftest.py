"""A small right config to break, the ancestor's file, and a way to write both."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkeeper.config import Experiment, load
from fedkeeper.errors import ConfigError

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

SMALL: Mapping[str, Any] = {
    "name": "small",
    "providers": {"openwhisk": {"ow": {"embedded": True}}, "google": {"gcf": {"embedded": True}}},
    "scenarios": {
        "federated_learning": {
            "server_config": {"server_cluster_name": "ow"},
            "clients_info": {
                "total_num_clients": 5,
                "num_clients_per_round": 4,
                "ow_clients_count": 3,
                "gcf_clients_count": 2,
            },
            "training_test_data": {
                f"{part}_{kind}_url": "data.npz"
                for part in ("train", "test")
                for kind in ("images", "labels")
            },
        }
    },
}
MISSING = object()


def changed(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `raw` with values at dotted paths (`fl.`: the learning scenario); MISSING takes one away."""
    result = copy.deepcopy(dict(raw))
    for path, value in changes.items():
        *sections, key = re.sub(r"^fl\.", "scenarios.federated_learning.", path).split(".")
        section = result
        for name in sections:
            section = section.setdefault(name, {})
        if value is MISSING:
            del section[key]
        else:
            section[key] = value
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for configs, with the data file that they name (nobody reads it here)."""
    (tmp_path / "data.npz").touch()
    return tmp_path


class Loading:
    """Loads the small config with changes, or gives the text of the faults that it then has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment: dict[str, str] = {}

    def __call__(self, **changes: Any) -> Experiment:
        return self.of(changes)

    def of(self, changes: Mapping[str, Any], *, raw: Mapping[str, Any] = SMALL) -> Experiment:
        return self.text(yaml.safe_dump(changed(raw, changes), sort_keys=False))

    def text(self, text: str) -> Experiment:
        path = self.folder / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, environment=self.environment)

    def faults(self, changes: Mapping[str, Any]) -> list[str]:
        """One text per fault, without the line's number."""
        with pytest.raises(ConfigError) as caught:
            self.of(changes)
        return [
            line.strip().split(": ", 1)[1] if "line " in line else line.strip()
            for line in str(caught.value).splitlines()[1:]
        ]


@pytest.fixture
def loading(folder: Path) -> Loading:
    """See Loading."""
    return Loading(folder)


@pytest.fixture
def ancestor() -> Callable[[], str]:
    """fl_faas_fabric's config-sample.yaml with everything filled in, as its users have it."""

    def filled() -> str:
        text = (HERE / "ancestor-config-sample.yaml").read_text(encoding="utf-8")
        for placeholder, value in FILLED_IN.items():
            assert placeholder in text
            text = text.replace(placeholder, value)
        return text

    return filled


OW_KEY = (
    "789c46b1-71f6-4ed5-8c54-816aa4f8c502:abczO3xZCLrMN6v2BKK1dXYFpXlPkccOFqm12CdAsMgRU4VrNZ9lyGVCGuMDGIwP"
)
PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG\\n-----END PRIVATE KEY-----\\n"
FILLED_IN = {
    "<ADD OW_AUTH here>": OW_KEY,
    "<ADD_IP_HERE>": "10.0.0.7",
    "<ADD API HOST of OW>": "https://10.0.0.7:31001",
    "<ADD_PROJECT_ID_HERE>": "my-project-17",
    "<ADD_MONGO_IP_HERE>": "10.0.0.8",
    'project_id: ""': "project_id: my-project-17",
    'private_key: ""': f'private_key: "{PRIVATE_KEY}"',
    'client_email: ""': "client_email: keeper@my-project-17.iam.gserviceaccount.com",
}
