"""Work on data before a run: look at it, convert it, time it."""
