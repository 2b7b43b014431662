"""Which layers a fine-tune disturbed."""
