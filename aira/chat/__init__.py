"""Best-of-n chat: candidates of a language model, a guard that drops toxic ones, a reward model that picks the best."""
