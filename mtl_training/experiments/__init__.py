"""Studies: several trainings that differ in one thing, measured alike, and their tables."""
