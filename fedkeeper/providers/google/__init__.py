"""Google Cloud Functions, second generation."""
