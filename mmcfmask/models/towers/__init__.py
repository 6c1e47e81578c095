"""Image and text towers: loading, the backbone, its fast path, and conversion."""
