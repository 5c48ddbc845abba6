"""What runs an explanation: plans, weights, backends, checks of inputs and targets."""
