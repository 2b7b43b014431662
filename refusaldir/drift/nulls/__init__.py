"""What drift looks like where nothing happened: a test of no drift, and rulers."""
