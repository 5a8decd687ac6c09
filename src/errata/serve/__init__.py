"""`errata serve`: one model, and a patch per request, behind OpenAI's protocol."""
