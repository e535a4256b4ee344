"""The keeper: turns intents into effects and effects into commands."""
