"""What is asked: the scenario language, its schema, its loader, its units, and the what-ifs themselves."""
