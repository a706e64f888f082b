"""Turns clips and checkpoints into numbers: FVD, PSNR, nearest clips, and the command that runs them."""
