"""Builders of manifests: `python -m manifests_tools NAME`, one module for each data set."""
