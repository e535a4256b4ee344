"""One folder per FaaS platform, all behind one protocol (`base`); `fedkeeper.platforms` lists them."""

import fedkeeper.config  # noqa: F401 - first: platforms' sections are part of it, and build on its modules
