"""What is particular to one denoiser, in one file each."""
