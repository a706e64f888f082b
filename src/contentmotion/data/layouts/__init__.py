"""One reader per layout: each turns a folder into a `Listing` without opening a video."""
