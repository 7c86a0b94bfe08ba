"""`python -m tests.evals.generate`: cases, events, bundles and expectations of the suite, made from the data."""
