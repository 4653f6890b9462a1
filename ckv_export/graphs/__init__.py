"""The two graphs: modules whose inputs and outputs are the contract's."""
