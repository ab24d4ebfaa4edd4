"""The feature explorer: every live feature of a run on a page that opens from the file system."""
