"""What several rooms' tests need: drawn models and inputs, slow loops to compare with, exports."""
