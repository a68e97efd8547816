"""What an edit did: to the edited facts, their paraphrases, neighbours and consequences, and to the rest of the model."""
