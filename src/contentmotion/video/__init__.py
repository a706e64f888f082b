"""Videos: paths to frames, frames to files."""
