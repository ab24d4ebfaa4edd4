"""What an edit does to feature activations and to a residual."""
