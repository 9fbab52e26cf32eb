"""Pairs of images and texts: sources, tokens, views, and the order in which a run meets them."""
