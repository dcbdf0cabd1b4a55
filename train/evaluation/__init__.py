"""Error rates on evaluation speech; needs the wheel and NumPy, no torch."""
