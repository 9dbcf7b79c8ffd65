"""From raw text to Megatron's indexed datasets, and back to facts about them."""
