"""Pages of the report besides the main one."""
