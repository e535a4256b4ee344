"""Edge clients: a run whose clients are partly on OpenFaaS, by both routes and both ways of calling."""

import pytest

from tests.e2e.lab import Lab

pytestmark = pytest.mark.e2e


def test_edge_clients_learn_what_others_learn(lab: Lab, calm: str):
    """Queued and called directly, or forwarded to without credentials: the weights are the same."""
    lab.write(
        "edgy",
        providers={
            "google": {},
            "openfaas": {
                "edge_direct": {"embedded": True, "route": "direct"},
                "edge_sync": {"embedded": True, "route": "direct", "invocation": "sync"},
                "edge": {"embedded": True},
            },
        },
        learning={
            "clients_info": {"ow_clients_count": 1, "gcf_clients_count": 0, "edge_clients_count": 3},
            "stopping": {"rounds_max": 3},
        },
    )
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    assert lab.weights_hash("edgy-1") == calm
    rows = {row["client"]: row for row in lab.rows("edgy-1", "activations") if row["client"]}
    assert [(rows[f"client_{n}"]["platform"], rows[f"client_{n}"]["cluster"]) for n in range(4)] == [
        ("openwhisk", "ow"),
        ("openfaas", "edge_direct"),
        ("openfaas", "edge_sync"),
        ("openfaas", "edge"),
    ]
    assert all(row["status"] == "ok" for row in rows.values())


def test_the_server_may_be_on_openfaas(lab: Lab):
    """Initialisation and aggregation behind a gateway, a client on another platform."""
    lab.write(
        "served",
        providers={"google": {}, "openfaas": {"edge": {"embedded": True}}},
        learning={
            "server_config": {"server_cluster_name": "edge"},
            "clients_info": {"ow_clients_count": 3, "gcf_clients_count": 0, "edge_clients_count": 1},
            "stopping": {"rounds_max": 1},
        },
    )
    done = lab.run("-s")
    assert done.returncode == 0, done.stdout
    [row] = lab.rows("served-1", "rounds")
    assert (row["updates"], row["failures"]) == ("4", "0")
