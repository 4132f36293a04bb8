"""Grey values: what a number between 0 (black) and 1 (white) means in every image."""

AIR = 0.02
"""Grey value up to which a pixel is air."""
