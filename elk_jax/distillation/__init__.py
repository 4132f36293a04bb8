"""Losses between the features of two networks, as pure functions. The caller chooses the features and the level."""
