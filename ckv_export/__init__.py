"""Export and deployment of CollectiveKV sequential-recommendation models."""

__version__ = "0.1.0"
