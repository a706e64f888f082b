"""The commands that use models and data; training's are in `train`, `evaluate` has its own."""
