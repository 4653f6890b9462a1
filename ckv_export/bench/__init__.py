"""What a bundle costs to serve on this machine, and against what."""
