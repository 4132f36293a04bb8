"""Classifiers on features of images that are computed once: linear, and by kernels."""
