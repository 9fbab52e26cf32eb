"""Models in use: collections embedded ahead of time, and searched by what their tokens match."""
