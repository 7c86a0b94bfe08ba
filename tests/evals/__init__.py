"""This project's own suite: real flights and films, a reference orchestrator as the flow, mutants that it catches."""
