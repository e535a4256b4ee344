"""What is said of a wrong file: everything at once, with the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedkeeper.config import load
from fedkeeper.errors import ConfigError

from .conftest import HERE, MISSING, ROOT, Loading

SIX_FAULTS = """\
name: my experiment
providers:
  openwhisk:
    ow: {embeded: true}
scenarios:
  federated_learning:
    server_config: {server_cluster_name: wo}
    clients_info: {total_num_clients: 5, num_clients_per_round: 6, ow_clients_count: 5}
    mongo_config: {url: "mongo:27017", username: me, password: "${MONGO_PASSWORD}"}
    training_test_data:
      train_images_url: https://example.org/train.pkl
      train_labels_url: https://example.org/train.npz
      test_images_url: https://example.org/test.npz
      test_labels_url: https://example.org/test.npz
"""
SIX_FAULTS_TEXT = """\
config.yaml has 6 faults
  line 1: name: names files and database objects: use letters, digits, '_', '-' and '.', at most 100 of them
  line 4: providers.openwhisk.ow.embeded: unknown key; did you mean 'embedded'?
  line 7: scenarios.federated_learning.server_config.server_cluster_name: no cluster 'wo'; did you mean 'ow'?
  line 8: scenarios.federated_learning.clients_info.num_clients_per_round: is 6, but there are 5 clients \
(total_num_clients); write at most 5
  line 9: scenarios.federated_learning.mongo_config.password: environment variable MONGO_PASSWORD is not \
set; export MONGO_PASSWORD=… before you start
  line 11: scenarios.federated_learning.training_test_data.train_images_url: is a pickle, and a pickle can \
run code; convert it to .npz (numpy.savez) and write that"""


def test_six_faults_are_six_lines(loading: Loading):
    """Of every kind (value, typo, rules between keys, secret), in the order of the file, with their lines."""
    with pytest.raises(ConfigError) as caught:
        loading.text(SIX_FAULTS)
    assert str(caught.value) == SIX_FAULTS_TEXT
    assert caught.value.hint == "config-sample.yaml and docs/configuration.md say what each key means"
    assert caught.value.exit_code == 2


CASES = yaml.safe_load((HERE / "faults.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: next(iter(case["write"])))
def test_a_fault_names_the_key_and_the_way_out(loading: Loading, case: dict[str, Any]):
    """These and no others: a fault never drags a second one behind it. See faults.yaml for the texts."""
    changes = {path: MISSING if value == "(nothing)" else value for path, value in case["write"].items()}
    found = [fault.replace(str(loading.folder), "FOLDER") for fault in loading.faults(changes)]
    assert found == case["faults"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [1,", "line 1, column 7: expected the node content, but found '<stream end>'"),
        ("name: x\n\tseed: 1", "line 2, column 1: found character '\\t' that cannot start any token"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("password: *hunter2", "line 1, column 11: found undefined alias '…'"),
        ("password: !hunter2 x", "line 1, column 11: could not determine a constructor for the tag '…'"),
        ("", "has no keys"),
        ("- a", "has no keys"),
        ("a: &a {b: *a}", "nests too deeply"),
        ("[" * 5000, "is not YAML"),
        ("a: \x00", "is not YAML"),
        ("a: [[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]", "nests too deeply"),
    ],
)
def test_broken_yaml_says_where_and_shows_no_value(loading: Loading, text: str, problem: str):
    """A password that begins with * is text of the file, not of the message."""
    with pytest.raises(ConfigError) as caught:
        loading.text(text)
    assert problem in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_many_aliases_do_not_take_the_memory(loading: Loading):
    """The billion laughs end early."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 15)]
    with pytest.raises(ConfigError, match="repeats itself too often"):
        loading.text("\n".join(lines))


def test_a_key_given_twice_is_a_fault(loading: Loading):
    """YAML libraries take the last one in silence."""
    with pytest.raises(ConfigError, match=r"line 3: key 'name' is on line 1 already"):
        loading.text("name: a\nseed: 1\nname: b\n")


def test_a_missing_file_says_to_copy_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the command to type: short in a clone, with the sample's place elsewhere."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"missing\.yaml is not there") as caught:
        load(Path("missing.yaml"))
    assert caught.value.hint == "copy the sample: cp config-sample.yaml missing.yaml"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(Path("config.yaml"))
    assert caught.value.hint == f"copy the sample: cp {ROOT / 'config-sample.yaml'} config.yaml"


def test_an_unreadable_file_says_why(tmp_path: Path):
    """A folder, bytes that are no text, a file too large to be a config."""
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(tmp_path / "bytes")
    (tmp_path / "large").write_bytes(b"#" * 2_000_000)
    with pytest.raises(ConfigError, match="larger than 1024 KB"):
        load(tmp_path / "large")
