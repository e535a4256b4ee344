"""Deploy, remove or describe functions on any of the clusters: `python deploy.py -a -d`."""

from fedkeeper.cli import deploy

if __name__ == "__main__":
    deploy()
