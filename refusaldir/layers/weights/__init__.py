"""What changed in the weights, from files alone."""
