"""What a comparison of some size can see."""
