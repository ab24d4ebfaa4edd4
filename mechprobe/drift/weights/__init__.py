"""What post-training changed in the weights, tensor by tensor."""
