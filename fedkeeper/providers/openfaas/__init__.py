"""OpenFaaS: the ancestor's edge clients."""

from fedkeeper.platforms import Platform

PLATFORM = Platform(
    title="OpenFaaS",
    a_cluster="an OpenFaaS gateway",
    these_clusters="OpenFaaS gateways",
    count_key="edge_clients_count",
    option=("-e", "--edge_providers_list"),
    entry_file="main.py",
    build_command="faas-cli build -f {0} && faas-cli push -f {0}",
)
