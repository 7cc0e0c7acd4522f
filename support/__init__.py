"""The plumbing: what a reader of the method may skip. It never knows the idea."""
