"""What is submitted of a config, and which keepers may take it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkeeper.config import Experiment, load
from fedkeeper.core.model import Run, RunSpec
from fedkeeper.core.stopping import faults
from fedkeeper.errors import ConfigError
from fedkeeper.keeper.api.runs import read_spec
from fedkeeper.keeper.tasks import book_of
from fedkeeper.wiring.submitting import check_submission, submission
from tests.config.conftest import SMALL, changed

SECRET = "the-password-of-the-database"


def experiment(folder: Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """The small config with `changes`, loaded."""
    (folder / "data.npz").touch()
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(changed(SMALL, changes or {})))
    return load(path)


def run_of(spec: RunSpec) -> Run:
    """As it is once it was submitted."""
    return Run(spec=spec, phase="training", round=1, weights=None)  # type: ignore[arg-type]


def test_a_submission_is_whole_and_holds_no_secret(tmp_path: Path):
    """Any keeper can tell the functions what to do from it, and the API takes it as it is."""
    mongo = {"fl.mongo_config": {"url": "db:27017", "username": "u", "password": SECRET}}
    made = submission(experiment(tmp_path, mongo), "small-1")
    assert faults(made.spec) == ""
    assert SECRET not in made.encoded().decode()
    plain = json.loads(made.encoded())
    assert read_spec(plain["spec"]) == made.spec
    assert made.spec.deploy_timeout_ms > 0
    book = book_of(run_of(made.spec))
    assert book.model.name == "cnn"
    assert json.loads(made.spec.book)["fingerprint"] == plain["fingerprint"] == book.fingerprint
    assert book.config["name"] == "small"


def test_a_keeper_with_the_same_config_takes_it(tmp_path: Path):
    """Also when what does not define the run differs."""
    made = submission(experiment(tmp_path), "small-1")
    check_submission(experiment(tmp_path, {"seed": 9, "logs.level": "debug"}), made.spec, made.fingerprint)


def test_a_keeper_without_its_clusters_routes_or_store_refuses_it_with_all_reasons(tmp_path: Path):
    """What would only fail in the middle of the run is said before it begins."""
    made = submission(experiment(tmp_path), "small-1")
    far = made.spec.clients[0]
    spec = replace(made.spec, clients=(replace(far, cluster="mars"), *made.spec.clients[1:]))
    other = {
        "providers.openwhisk.ow.route": "invoker",
        "fl.mongo_config": {"embedded": True, "db": "another"},
    }
    with pytest.raises(ConfigError) as caught:
        check_submission(experiment(tmp_path, other), spec, made.fingerprint)
    problem = str(caught.value)
    assert "cluster 'mars' is not in it; it has ow, gcf" in problem
    assert "cluster 'ow' has route 'invoker' in it, not 'direct'" in problem
    assert "mongo_config.db is another" in problem
