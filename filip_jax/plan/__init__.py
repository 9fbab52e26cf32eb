"""What a run would need on chips that are not here: `filip plan`."""
