"""What an edit did: to the edited facts, their paraphrases and neighbours, and to the rest of the model."""
