"""From relevance to maps: heatmaps, tokens, pictures."""
