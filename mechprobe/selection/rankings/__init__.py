"""Values that rank features: Score, joint attribution, integrated gradients, RelIE."""
