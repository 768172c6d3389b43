"""Builders of manifests: `python -m manifests_tools NAME`, one module per data set."""
