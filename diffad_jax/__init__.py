"""Anomaly detection with diffusion models: train on normal data, reconstruct, score."""

__version__ = "0.1.0"
