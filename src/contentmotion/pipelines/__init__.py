"""Diffusers-style pipelines over the stages."""
