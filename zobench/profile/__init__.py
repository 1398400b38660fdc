"""What a step costs in time and memory, measured on rows of one length. Knows no config and writes no file."""
