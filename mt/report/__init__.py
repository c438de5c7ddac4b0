"""The HTML report on runs and models, and pictures of attention weights."""
