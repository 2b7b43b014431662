"""The outcome's change shared out over the changes of the weights."""
