"""Answer-only data: fine-tuning rows of prompt and answer, of which the answer is learned."""
