"""Whose functions are whose, from the command line."""

import pytest

from tests.e2e.lab import Lab

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def test_a_removal_finds_clients_that_only_an_older_config_had(lab: Lab):
    """Six are deployed, then the config has two: -r leaves none. With a prefix, another one's stay."""

    def clients(whisk: int, google: int) -> dict:
        counts = {"ow_clients_count": whisk, "gcf_clients_count": google}
        return {"clients_info": {"total_num_clients": whisk + google, "num_clients_per_round": 2, **counts}}

    lab.write("shrunk", learning=clients(4, 2), function_prefix="mine_")
    deployed = lab.run("-d")
    assert deployed.returncode == 0, deployed.stdout
    lab.write("neighbour", learning=clients(1, 1))
    assert lab.run("-d").returncode == 0
    lab.write("shrunk", learning=clients(1, 1), function_prefix="mine_")
    removed = lab.run("-r")
    assert removed.returncode == 0, removed.stdout
    for number in range(6):
        assert f"/client_{number}" in removed.stdout
    lab.write("shrunk", learning=clients(4, 2), function_prefix="mine_")
    left = lab.run(program="functions")
    assert "active" not in left.stdout
    lab.write("neighbour", learning=clients(1, 1))
    found = lab.run(program="functions")
    assert found.stdout.count("active") >= 4
    assert lab.run("-r").returncode == 0
