"""One module per FaaS platform, all behind one protocol."""
