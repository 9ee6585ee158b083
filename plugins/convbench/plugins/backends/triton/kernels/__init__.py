"""What runs on the device: Triton alone, in the language that its compiler reads."""
