"""The pure core: state + command -> state + intents."""
