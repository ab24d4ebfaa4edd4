"""The verdict over dictionaries that differ in their training seed only, with their sets matched across them."""
