"""Replies of a model in this process: in batches, greedy or sampled, read on the way."""
