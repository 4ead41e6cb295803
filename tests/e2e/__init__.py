"""The page in a real browser, as a new user would use it."""
