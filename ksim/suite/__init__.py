"""The fixed suite by which a walking policy is judged: `ksim eval POLICY --suite walk`."""
