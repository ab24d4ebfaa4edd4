"""Language models of one family, and their residual streams."""
