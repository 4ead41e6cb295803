"""An engine replica written for clarity alone, to check the fast one against."""
