"""How a change of refusals goes with the prompts' projections on base's direction."""
