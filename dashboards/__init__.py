"""What people see: the terminal report and the page."""
