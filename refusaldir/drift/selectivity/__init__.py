"""Whether refusal was singled out, or everything moved."""
