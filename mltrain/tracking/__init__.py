"""The tracking server: client, tags, MLflow models and registry."""
