"""Classifiers on precomputed features of images: linear heads and kernel heads."""
