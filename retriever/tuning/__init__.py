"""Which settings are worth their cost on a given collection: `retriever tune`."""
