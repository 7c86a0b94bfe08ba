"""Model calls that always end in time with a labelled result: breakers, budgets, checks, and a ladder to fall down."""
