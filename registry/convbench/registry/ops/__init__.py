"""The ops of the contract, and what their calls mean."""
