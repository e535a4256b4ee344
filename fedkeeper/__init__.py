"""FedKeeper: federated learning where every client is a function on a FaaS platform."""

__version__ = "0.1.0"
