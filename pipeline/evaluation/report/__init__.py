"""Reports of a judged run, for people and programs; what models wrote is data in all of them, and hostile."""
