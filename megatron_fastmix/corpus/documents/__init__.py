"""From a record to a document: conversations, chat templates, and which tokens are learned."""
