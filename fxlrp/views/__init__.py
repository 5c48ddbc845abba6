"""An explainer made visible: pictures, reports, Model Explorer, program text."""
