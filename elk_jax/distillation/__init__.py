"""Losses between the features of two networks, as pure functions. Whose features, and which level, the caller says."""
