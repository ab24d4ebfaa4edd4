"""Training dynamics: scores that dip below base and recover, and response length beside them (arXiv 2604.06628)."""
