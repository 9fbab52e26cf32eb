"""Cleaning of image-text pairs as FILIP did it (section 4): rules, and the run of them over a source."""
