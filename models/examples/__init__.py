"""What a model learns from: the tokenised corpus, labelled pairs and hard negatives."""
