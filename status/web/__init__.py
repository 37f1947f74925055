"""What the status service says over HTTP."""
