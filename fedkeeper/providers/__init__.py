"""One folder per FaaS platform, all behind one protocol."""
