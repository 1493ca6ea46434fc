"""Item-item and matrix models that are solved exactly."""
