"""Log-probabilities of the tokens of fixed traces under every checkpoint, and the backtracking of generated text."""
