"""What a model is worth: retrieval, zero-shot classification, localisation, pictures."""
