"""What an explainer returns: explanations, ledgers, summaries, profiles."""
