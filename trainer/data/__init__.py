"""From text to micro-batches: sources, tokenizing, the row table, the order, the deal, loading."""

CHOICES = ("sources", "record_sources", "token_sources", "mixture", "tokenizers")
