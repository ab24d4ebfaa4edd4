"""Train one crosscoder over an activation store, and measure how well it reconstructs."""
