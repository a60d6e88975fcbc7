"""The recipe that made the embedded weights, stage by stage."""
