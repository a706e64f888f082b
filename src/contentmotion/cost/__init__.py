"""What a network costs, on meta or on a clock."""
