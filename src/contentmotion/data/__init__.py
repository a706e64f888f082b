"""Data: folders of captioned videos as training clips."""
