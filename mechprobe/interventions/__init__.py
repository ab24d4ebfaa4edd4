"""Edit selected features during generation, against controls, and give a verdict."""
