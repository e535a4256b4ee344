"""The HTTP API of each keeper: `app.open_api`."""
