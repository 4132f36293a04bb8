"""Detectors with the names of another library: the inverse of `weights.detectors`, one module per library."""
