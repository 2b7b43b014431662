"""What the model does: generation, refusal scores, judged responses, paired comparison.

Import from the modules; nothing heavy is loaded here.
"""
