"""Record the residual streams of every model of a family on the same tokens."""
