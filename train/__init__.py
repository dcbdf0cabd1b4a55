"""Training of the emotion-invariant encoders; needs the ``train`` extra and a checkout."""
