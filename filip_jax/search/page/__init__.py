"""The page of `filip serve`: hits, and the patches that make them hits."""
