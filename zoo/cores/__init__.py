"""What backends of a family share: each file computes one thing, and a backend says with what."""
