"""Other toolkits: Captum, Quantus, SmoothGrad."""
