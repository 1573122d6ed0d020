"""What the shared HTTP edge promises, through Flask's test client."""
