"""What a clip costs from prompt to pixels: counted, and timed side by side with other systems."""
