"""From development speech to the calibration of one encoder; needs the wheel and NumPy, no torch."""
