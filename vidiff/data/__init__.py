"""Reading clips and captions, caching what is computed from them, and feeding training."""
